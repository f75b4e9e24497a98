"""ShuffleNetV1 for small images: grouped 1x1 convolutions, and a shuffle that mixes their groups.

Architecture: Zhang et al., arXiv 1707.01083, with 3 groups, the channels of table 1 and a 1x1 stem that
keeps the image's size. Parameter names and shapes equal those of mdistiller and RepDistiller
(``ShuffleV1`` there).
"""

import torch
from torch import Tensor, nn

from gda.models.layout import Layout
from gda.models.zoo.entry import ZooEntry

STEM = 24
WIDTHS = (240, 480, 960)
BLOCKS = (4, 8, 4)
GROUPS = 3


class ChannelShuffle(nn.Module):
    """Interleaves the channels of ``groups`` groups: the first of each group, the second of each, ...

    Args:
        groups: Into how many equal parts the channels are cut.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, channels, h, w)`` to the same shape."""
        batch, channels, height, width = x.shape
        grouped = x.reshape(batch, self.groups, channels // self.groups, height, width)
        return grouped.transpose(1, 2).reshape(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """A bottleneck of grouped convolutions: 1x1, shuffle, 3x3 of each channel for itself, 1x1.

    At stride 1 the input is added to what comes out. At stride 2 it is average-pooled and joined to it
    as further channels.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Step of the 3x3 convolution; 2 halves height and width.
        first_groups: Groups of the first convolution; the last one has 3.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, first_groups: int = GROUPS) -> None:
        super().__init__()
        computed = outputs - inputs if stride == 2 else outputs
        narrow = computed // 4
        self.conv1 = nn.Conv2d(inputs, narrow, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.relu1 = nn.ReLU()
        self.shuffle1 = ChannelShuffle(first_groups)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride=stride, padding=1, groups=narrow, bias=False)
        self.bn2 = nn.BatchNorm2d(narrow)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(narrow, computed, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(computed)
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else nn.Identity()
        self.joins = stride == 2
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, inputs, h, w)`` to ``(batch, outputs, h/stride, w/stride)``."""
        out = self.shuffle1(self.relu1(self.bn1(self.conv1(x))))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        residual = self.shortcut(x)
        return self.relu3(torch.cat([out, residual], 1) if self.joins else out + residual)


class CifarShuffleNetV1(nn.Module):
    """Stem, stages ``layer1``, ``layer2``, ``layer3``, then ``avgpool`` and ``linear``.

    The pooling is a global average, so that images of other sizes than 32x32 work as well.

    Args:
        num_classes: Size of the output.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU()
        # The stem's few channels are not grouped.
        self.layer1 = _stage(STEM, first, BLOCKS[0], first_groups=1)
        self.layer2 = _stage(first, second, BLOCKS[1])
        self.layer3 = _stage(second, third, BLOCKS[2])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(third, num_classes)
        # The stem is alone at the image's own scale.
        self.layout = Layout(
            stages={1: "relu", 2: "layer1", 3: "layer2", 4: "layer3"},
            preactivations={
                1: "bn1",
                **{
                    layer + 1: f"layer{layer}.{units - 1}.relu3:input"
                    for layer, units in enumerate(BLOCKS, start=1)
                },
            },
            head="linear",
            final_map="avgpool:input",
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``(batch, 3, h, w)`` to logits ``(batch, num_classes)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(self.avgpool(x), 1))


def _stage(inputs: int, outputs: int, units: int, first_groups: int = GROUPS) -> nn.Sequential:
    """Returns ``units`` units of which the first halves the image."""
    first = ShuffleUnit(inputs, outputs, 2, first_groups)
    return nn.Sequential(first, *(ShuffleUnit(outputs, outputs, 1) for _ in range(units - 1)))


MODELS = {"shufflenetv1": ZooEntry(CifarShuffleNetV1, 32)}
