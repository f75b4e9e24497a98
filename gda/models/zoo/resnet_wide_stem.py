"""ResNets for small images with the widths of the ImageNet models: a 3x3 stem of 64 channels, four stages.

Architecture: He et al., arXiv 1512.03385, table 1, without the stem's stride and pooling. Parameter
names and shapes equal those of mdistiller and RepDistiller, which call them ResNet18, ResNet34 and
ResNet50.
"""

from functools import partial

import torch
from torch import Tensor, nn

from gda.models.layout import Layout
from gda.models.zoo.entry import ZooEntry

STEM = 64
WIDTHS = (64, 128, 256, 512)
"""Channels inside the blocks of each stage; a bottleneck puts out four times as many."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
        inputs: Channels that come in.
        width: Channels of both convolutions.
        stride: Step of the first convolution; 2 halves height and width.
    """

    expansion = 1
    last_activation = "relu2"
    """The submodule whose input is the block's output before its activation."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, inputs, h, w)`` to ``(batch, width, h/stride, w/stride)``."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, and a shortcut.

    Args:
        inputs: Channels that come in.
        width: Channels of the 3x3 convolution; four times as many go out.
        stride: Step of the 3x3 convolution; 2 halves height and width.
    """

    expansion = 4
    last_activation = "relu3"
    """The submodule whose input is the block's output before its activation."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, inputs, h, w)`` to ``(batch, 4 * width, h/stride, w/stride)``."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu3(out + self.shortcut(x))


class WideStemResNet(nn.Module):
    """Stem, stages ``layer1`` ... ``layer4``, then ``avgpool`` and ``linear``.

    The pooling is a global average, so that images of other sizes than 32x32 work as well.

    Args:
        block: Kind of the blocks.
        blocks: How many blocks each stage has.
        num_classes: Size of the output.
    """

    def __init__(
        self, block: type[BasicBlock | Bottleneck], blocks: tuple[int, int, int, int], num_classes: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU()
        first, second, third, fourth = WIDTHS
        growth = block.expansion
        self.layer1 = _stage(block, STEM, first, blocks[0], stride=1)
        self.layer2 = _stage(block, first * growth, second, blocks[1], stride=2)
        self.layer3 = _stage(block, second * growth, third, blocks[2], stride=2)
        self.layer4 = _stage(block, third * growth, fourth, blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(fourth * growth, num_classes)
        self.layout = Layout(
            stages={stage: f"layer{stage}" for stage in (1, 2, 3, 4)},
            preactivations={
                stage: f"layer{stage}.{count - 1}.{block.last_activation}:input"
                for stage, count in enumerate(blocks, start=1)
            },
            head="linear",
            final_map="avgpool:input",
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``(batch, 3, h, w)`` to logits ``(batch, num_classes)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(torch.flatten(self.avgpool(x), 1))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Returns the identity where the block keeps its input's shape, else a 1x1 projection."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


def _stage(
    block: type[BasicBlock | Bottleneck], inputs: int, width: int, blocks: int, stride: int
) -> nn.Sequential:
    """Returns ``blocks`` blocks of which the first changes channels and size."""
    rest = (block(width * block.expansion, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(block(inputs, width, stride), *rest)


MODELS = {
    "cifar_resnet18": ZooEntry(partial(WideStemResNet, BasicBlock, (2, 2, 2, 2)), 32),
    "cifar_resnet34": ZooEntry(partial(WideStemResNet, BasicBlock, (3, 4, 6, 3)), 32),
    "cifar_resnet50": ZooEntry(partial(WideStemResNet, Bottleneck, (3, 4, 6, 3)), 32),
}
