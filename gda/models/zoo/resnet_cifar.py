"""The CIFAR ResNets of depth 6n + 2: a 3x3 stem and three stages of basic blocks.

Architecture: He et al., arXiv 1512.03385, section 4.2, with 1x1 convolution shortcuts. The ``x4``
variants widen the stages four times. Parameter names and shapes equal those of mdistiller and
RepDistiller, so their published weights load.
"""

from functools import partial

import torch
from torch import Tensor, nn

from gda.models.layout import Layout
from gda.models.zoo.entry import ZooEntry

STANDARD_WIDTHS = (16, 16, 32, 64)
WIDE_WIDTHS = (32, 64, 128, 256)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    No activation is computed in place, so that a hook on any submodule sees values that stay as
    they were; the input of ``relu2`` is the block's output before its activation.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Step of the first convolution; 2 halves height and width.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, inputs, h, w)`` to ``(batch, outputs, h/stride, w/stride)``."""
        residual = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + residual)


class CifarResNet(nn.Module):
    """ResNet for small images; stages ``layer1``, ``layer2``, ``layer3``, then ``avgpool`` and ``fc``.

    The pooling is a global average, so that images of other sizes than 32x32 work as well.

    Args:
        depth: Number of weighted layers, 6n + 2.
        num_classes: Size of the output.
        widths: Channels of the stem and of the three stages.

    Raises:
        ValueError: ``depth`` is not of the form 6n + 2 with n at least 1.
    """

    def __init__(
        self, depth: int, num_classes: int, widths: tuple[int, int, int, int] = STANDARD_WIDTHS
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"a CIFAR ResNet has depth 6n + 2 (8, 14, 20, ...), not {depth}")
        stem, first, second, third = widths
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = _stage(stem, first, blocks, stride=1)
        self.layer2 = _stage(first, second, blocks, stride=2)
        self.layer3 = _stage(second, third, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, num_classes)
        self.layout = Layout(
            stages={stage: f"layer{stage}" for stage in (1, 2, 3)},
            preactivations={stage: f"layer{stage}.{blocks - 1}.relu2:input" for stage in (1, 2, 3)},
            head="fc",
            final_map="avgpool:input",
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``(batch, 3, h, w)`` to logits ``(batch, num_classes)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    """Returns ``blocks`` basic blocks of which the first changes channels and size."""
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


MODELS = {
    **{f"resnet{depth}": ZooEntry(partial(CifarResNet, depth), 32) for depth in (8, 20, 32, 56, 80, 110)},
    **{
        f"resnet{depth}x4": ZooEntry(partial(CifarResNet, depth, widths=WIDE_WIDTHS), 32) for depth in (8, 32)
    },
}
