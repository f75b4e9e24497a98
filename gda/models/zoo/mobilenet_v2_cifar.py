"""MobileNetV2 for small images, at half width.

Architecture: Sandler et al., arXiv 1801.04381, table 2, with ReLU in place of ReLU6, and the first
block of 24 channels keeps the image's size. Parameter names and shapes equal those of mdistiller and
RepDistiller (``mobile_half`` there).
"""

import torch
from torch import Tensor, nn

from gda.models.layout import Layout
from gda.models.zoo.entry import ZooEntry

STEM = 32
STAGES = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
"""Channels at full width, number of blocks, and step of the first block, of each part of ``blocks``."""
LAST = 1280


class InvertedResidual(nn.Module):
    """Widens with a 1x1 convolution, filters each channel by 3x3, and narrows again without activation.

    The input is added where the block keeps its shape.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Step of the 3x3 convolution; 2 halves height and width.
        expansion: Factor by which the block widens.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.conv = nn.Sequential(
            *_activated(inputs, wide, 1),
            *_activated(wide, wide, 3, stride=stride, groups=wide),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, inputs, h, w)`` to ``(batch, outputs, h/stride, w/stride)``."""
        out = self.conv(x)
        return x + out if self.adds_input else out


class CifarMobileNetV2(nn.Module):
    """A stem ``conv1`` that halves the image, seven ``blocks``, ``conv2``, ``avgpool`` and ``classifier``.

    The pooling is a global average, so that images of other sizes than 32x32 work as well.

    Args:
        num_classes: Size of the output.
        width: Factor on all channels but those of ``conv2``, which is never below 1,280.
        expansion: Factor by which all blocks but the first widen their input.
    """

    def __init__(self, num_classes: int, width: float = 0.5, expansion: int = 6) -> None:
        super().__init__()
        channels = int(STEM * width)
        self.conv1 = nn.Sequential(*_activated(3, channels, 3, stride=2))
        self.blocks = nn.ModuleList()
        for full_width, count, stride in STAGES:
            outputs = int(full_width * width)
            factor = expansion if self.blocks else 1
            first = InvertedResidual(channels, outputs, stride, factor)
            rest = (InvertedResidual(outputs, outputs, 1, factor) for _ in range(count - 1))
            self.blocks.append(nn.Sequential(first, *rest))
            channels = outputs
        last = int(LAST * max(1.0, width))
        self.conv2 = nn.Sequential(*_activated(channels, last, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(last, num_classes))
        # The stem halves the image: there is no stage 1, and the last blocks are below stage 4. No
        # block ends in an activation.
        stages = {2: "blocks.1", 3: "blocks.2", 4: "blocks.4"}
        self.layout = Layout(
            stages=stages, preactivations=stages, head="classifier.0", final_map="avgpool:input"
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``(batch, 3, h, w)`` to logits ``(batch, num_classes)``."""
        x = self.conv1(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(torch.flatten(self.avgpool(self.conv2(x)), 1))


def _activated(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
    """Returns a convolution that keeps the size at stride 1, batch norm and ReLU."""
    convolution = nn.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


MODELS = {"mobilenetv2": ZooEntry(CifarMobileNetV2, 32)}
