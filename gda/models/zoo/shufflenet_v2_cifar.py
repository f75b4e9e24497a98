"""ShuffleNetV2 for small images: each unit computes on half of the channels and passes on the other half.

Architecture: Ma et al., arXiv 1807.11164, table 5, size 1x, with a 1x1 stem that keeps the image's size.
Parameter names and shapes equal those of mdistiller and RepDistiller (``ShuffleV2`` there).
"""

import torch
from torch import Tensor, nn

from gda.models.layout import Layout
from gda.models.zoo.entry import ZooEntry
from gda.models.zoo.shufflenet_v1_cifar import ChannelShuffle

STEM = 24
WIDTHS = (116, 232, 464)
LAST = 1024
BLOCKS = (3, 7, 3)
"""Units of each stage behind the one that halves the image."""


class BasicUnit(nn.Module):
    """Passes on the first half of the channels, computes on the second, and shuffles both together.

    Args:
        channels: Channels that come in and go out. They must not be negative: they come out of a ReLU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.shuffle = ChannelShuffle(2)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, channels, h, w)`` to the same shape."""
        passed, half = x.chunk(2, dim=1)
        out = self.relu1(self.bn1(self.conv1(half)))
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        # The passed half is activated already, and a second ReLU leaves it as it is. One ReLU of all
        # channels at the end has the whole map before the activation as its input.
        return self.relu3(self.shuffle(torch.cat([passed, out], 1)))


class DownUnit(nn.Module):
    """Halves the image in two branches, each of which makes half of the channels, and shuffles them.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = nn.Conv2d(inputs, inputs, 3, stride=2, padding=1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu5 = nn.ReLU()
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, inputs, h, w)`` to ``(batch, outputs, h/2, w/2)``."""
        short = self.bn1(self.conv1(x))
        short = self.relu2(self.bn2(self.conv2(short)))
        long = self.relu3(self.bn3(self.conv3(x)))
        long = self.bn4(self.conv4(long))
        long = self.relu5(self.bn5(self.conv5(long)))
        return self.shuffle(torch.cat([short, long], 1))


class CifarShuffleNetV2(nn.Module):
    """Stem, stages ``layer1`` ... ``layer3``, a 1x1 convolution ``conv2``, then ``avgpool`` and ``linear``.

    The pooling is a global average, so that images of other sizes than 32x32 work as well.

    Args:
        num_classes: Size of the output.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu1 = nn.ReLU()
        self.layer1 = _stage(STEM, first, BLOCKS[0])
        self.layer2 = _stage(first, second, BLOCKS[1])
        self.layer3 = _stage(second, third, BLOCKS[2])
        self.conv2 = nn.Conv2d(third, LAST, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(LAST)
        self.relu2 = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(LAST, num_classes)
        # The stem is alone at the image's own scale. The 1x1 convolution behind the last unit counts
        # with the head, as in published distillation code.
        self.layout = Layout(
            stages={1: "relu1", 2: "layer1", 3: "layer2", 4: "layer3"},
            preactivations={
                1: "bn1",
                **{
                    layer + 1: f"layer{layer}.{units}.relu3:input"
                    for layer, units in enumerate(BLOCKS, start=1)
                },
            },
            head="linear",
            final_map="avgpool:input",
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``(batch, 3, h, w)`` to logits ``(batch, num_classes)``."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.linear(torch.flatten(self.avgpool(x), 1))


def _stage(inputs: int, outputs: int, units: int) -> nn.Sequential:
    """Returns a unit that halves the image, and ``units`` that keep its size."""
    return nn.Sequential(DownUnit(inputs, outputs), *(BasicUnit(outputs) for _ in range(units)))


MODELS = {"shufflenetv2": ZooEntry(CifarShuffleNetV2, 32)}
