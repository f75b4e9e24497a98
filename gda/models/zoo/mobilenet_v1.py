"""MobileNetV1 for ImageNet.

Architecture: Howard et al., arXiv 1704.04861, table 1. Parameter names and shapes equal those of
mdistiller, whose weights have 1,000 classes.
"""

import torch
from torch import Tensor, nn

from gda.models.layout import Layout
from gda.models.zoo.entry import ZooEntry

STEM = 32
BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)
"""Channels and step of each separable convolution."""


class MobileNetV1(nn.Module):
    """A stem ``model.0``, separable convolutions ``model.1`` ... ``model.13``, their pooling, and ``fc``.

    The pooling is a global average, so that images of other sizes than 224x224 work as well.

    Args:
        num_classes: Size of the output.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = [STEM, *(width for width, _ in BLOCKS)]
        self.model = nn.Sequential(
            nn.Sequential(*_activated(3, STEM, 3, stride=2)),
            *(_separable(inputs, *block) for inputs, block in zip(widths, BLOCKS, strict=False)),
            nn.AdaptiveAvgPool2d(1),
        )
        self.fc = nn.Linear(widths[-1], num_classes)
        last = {1: "model.3", 2: "model.5", 3: "model.11", 4: "model.13"}
        self.layout = Layout(
            stages=last,
            preactivations={stage: f"{path}.4" for stage, path in last.items()},
            head="fc",
            final_map="model.14:input",
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``(batch, 3, h, w)`` to logits ``(batch, num_classes)``."""
        return self.fc(torch.flatten(self.model(x), 1))


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Returns a 3x3 convolution of each channel for itself, and a 1x1 convolution across channels."""
    return nn.Sequential(
        *_activated(inputs, inputs, 3, stride=stride, groups=inputs), *_activated(inputs, outputs, 1)
    )


def _activated(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
    """Returns a convolution that keeps the size at stride 1, batch norm and ReLU."""
    convolution = nn.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


MODELS = {"mobilenetv1": ZooEntry(MobileNetV1, 224)}
