"""Wide ResNets of depth 6n + 4: batch norm and ReLU come before each convolution, not after it.

Architecture: Zagoruyko and Komodakis, arXiv 1605.07146, without dropout; ``wrn_40_2`` has depth 40 and
widening factor 2. Parameter names and shapes equal those of mdistiller and RepDistiller.
"""

from functools import partial

import torch
from torch import Tensor, nn

from gda.models.layout import Layout
from gda.models.zoo.entry import ZooEntry

STEM = 16


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each behind batch norm and ReLU, and a shortcut; no activation at the end.

    Where the block changes channels or size, the shortcut is a 1x1 convolution of the activated input;
    elsewhere it is the input itself.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Step of the first convolution; 2 halves height and width.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut: nn.Conv2d | None = None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, inputs, h, w)`` to ``(batch, outputs, h/stride, w/stride)``."""
        activated = self.relu1(self.bn1(x))
        residual = x if self.convShortcut is None else self.convShortcut(activated)
        out = self.conv1(activated)
        return residual + self.conv2(self.relu2(self.bn2(out)))


class Stage(nn.Module):
    """Blocks of one scale, under the published name ``layer``.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        blocks: How many blocks there are.
        stride: Step of the first one.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = PreActivationBlock(inputs, outputs, stride)
        self.layer = nn.Sequential(
            first, *(PreActivationBlock(outputs, outputs, 1) for _ in range(blocks - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, inputs, h, w)`` to ``(batch, outputs, h/stride, w/stride)``."""
        return self.layer(x)


class WideResNet(nn.Module):
    """Stages ``block1``, ``block2``, ``block3``, then ``bn1``, ``relu``, ``avgpool`` and ``fc``.

    The pooling is a global average, so that images of other sizes than 32x32 work as well.

    Args:
        depth: Number of weighted layers, 6n + 4.
        widening: Factor on the channels 16, 32, 64 of the three stages.
        num_classes: Size of the output.

    Raises:
        ValueError: ``depth`` is not of the form 6n + 4 with n at least 1.
    """

    def __init__(self, depth: int, widening: int, num_classes: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"a wide ResNet has depth 6n + 4 (10, 16, 22, ...), not {depth}")
        first, second, third = (STEM * scale * widening for scale in (1, 2, 4))
        self.conv1 = nn.Conv2d(3, STEM, 3, padding=1, bias=False)
        self.block1 = Stage(STEM, first, blocks, stride=1)
        self.block2 = Stage(first, second, blocks, stride=2)
        self.block3 = Stage(second, third, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(third)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, num_classes)
        self.layout = Layout(
            stages={stage: f"block{stage}" for stage in (1, 2, 3)},
            # A stage's end is only activated by what follows it. As in the published OFD code, the map
            # before the activation is the one that comes out of the batch norm there.
            preactivations={1: "block2.layer.0.bn1", 2: "block3.layer.0.bn1", 3: "bn1"},
            head="fc",
            final_map="avgpool:input",
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``(batch, 3, h, w)`` to logits ``(batch, num_classes)``."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = self.relu(self.bn1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


MODELS = {
    f"wrn_{depth}_{widening}": ZooEntry(partial(WideResNet, depth, widening), 32)
    for depth in (16, 40)
    for widening in (1, 2)
}
