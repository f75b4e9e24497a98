"""VGG for small images: five blocks of 3x3 convolutions with batch norm, and one linear layer.

Architecture: Simonyan and Zisserman, arXiv 1409.1556, table 1, columns A, B, D and E, and ``vgg8`` with
one convolution per block. Parameter names and shapes equal those of mdistiller and RepDistiller
(``vgg8_bn`` ... there).
"""

from functools import partial

import torch
from torch import Tensor, nn

from gda.models.layout import Layout
from gda.models.zoo.entry import ZooEntry

WIDTHS = (64, 128, 256, 512, 512)


class CifarVGG(nn.Module):
    """Blocks ``block0`` ... ``block4``, each with a ``relu`` of its number, ``pool4`` and ``classifier``.

    The first three blocks are followed by a max pooling that halves height and width, the fourth one
    for images of 64 pixels only. The last pooling is a global average, so that images of 8 pixels and
    more work.

    Args:
        convolutions: How many convolutions each block has.
        num_classes: Size of the output.
    """

    def __init__(self, convolutions: tuple[int, int, int, int, int], num_classes: int) -> None:
        super().__init__()
        first, second, third, fourth, fifth = WIDTHS
        self.block0 = _block(3, first, convolutions[0])
        self.block1 = _block(first, second, convolutions[1])
        self.block2 = _block(second, third, convolutions[2])
        self.block3 = _block(third, fourth, convolutions[3])
        self.block4 = _block(fourth, fifth, convolutions[4])
        self.relu0, self.relu1, self.relu2, self.relu3, self.relu4 = (nn.ReLU() for _ in WIDTHS)
        self.pool0, self.pool1, self.pool2, self.pool3 = (nn.MaxPool2d(2) for _ in WIDTHS[:-1])
        self.pool4 = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(fifth, num_classes)
        # block3 has the scale of block4, at the native size.
        self.layout = Layout(
            stages={1: "relu0", 2: "relu1", 3: "relu2", 4: "relu4"},
            preactivations={1: "block0", 2: "block1", 3: "block2", 4: "block4"},
            head="classifier",
            final_map="pool4:input",
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.01)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``(batch, 3, h, w)`` to logits ``(batch, num_classes)``."""
        height = x.shape[2]
        x = self.pool0(self.relu0(self.block0(x)))
        x = self.pool1(self.relu1(self.block1(x)))
        x = self.pool2(self.relu2(self.block2(x)))
        x = self.relu3(self.block3(x))
        if height == 64:
            x = self.pool3(x)
        x = self.relu4(self.block4(x))
        return self.classifier(torch.flatten(self.pool4(x), 1))


def _block(inputs: int, width: int, convolutions: int) -> nn.Sequential:
    """Returns convolutions with batch norm and, but for the last one, ReLU."""
    layers: list[nn.Module] = []
    for position in range(convolutions):
        channels = width if position else inputs
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


MODELS = {
    "vgg8": ZooEntry(partial(CifarVGG, (1, 1, 1, 1, 1)), 32),
    "vgg11": ZooEntry(partial(CifarVGG, (1, 1, 2, 2, 2)), 32),
    "vgg13": ZooEntry(partial(CifarVGG, (2, 2, 2, 2, 2)), 32),
    "vgg16": ZooEntry(partial(CifarVGG, (2, 2, 3, 3, 3)), 32),
    "vgg19": ZooEntry(partial(CifarVGG, (2, 2, 4, 4, 4)), 32),
}
