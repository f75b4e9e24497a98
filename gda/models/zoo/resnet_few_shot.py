"""The ResNets of few-shot learning: four stages of blocks of three convolutions, for 80x80 images.

Architecture: the ResNet-12 of Chen et al., "Meta-Baseline", arXiv 2003.04390, and its deeper
versions in vision_weak_to_strong. The ending ``_bottle`` is part of the published names and means that
stages are pooled; no block is a bottleneck. Parameter names and shapes equal the published ones, so
published weights load.

``resnet12`` and ``resnet12-wide`` are two networks under one name, with the same parameters. In
vision_weak_to_strong, and here unless told otherwise, they pool nothing and run at the full resolution
throughout, 22 times the work of ``resnet12_bottle``: they are kept for its checkpoints. In
few-shot-meta-baseline they max-pool after each stage; ``pooling=True`` builds those.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from gda.models.layout import INPUT, Layout
from gda.models.zoo.encoder_classifier import Encoder, with_head
from gda.models.zoo.entry import ZooEntry

WIDTHS = (64, 128, 256, 512)
WIDE_WIDTHS = (64, 160, 320, 640)
IMAGE_SIZE = 80
SLOPE = 0.1  # of the activations, below zero


class Block(nn.Module):
    """Three 3x3 convolutions and a shortcut, with leaky ReLUs and perhaps 2x2 max-pooling.

    No activation is computed in place, so that a hook on any submodule sees values that stay as they
    were. Pooling comes before the last activation: both orders give the same values and gradients, this
    one has a quarter of the values to activate, and the input of ``relu3``, the block's output before its
    activation, has the output's scale.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        projection: Whether the shortcut is a 1x1 convolution.
        pooling: Whether height and width are halved.
    """

    def __init__(self, inputs: int, outputs: int, projection: bool, pooling: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.LeakyReLU(SLOPE)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.LeakyReLU(SLOPE)
        self.conv3 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if projection:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )
        self.maxpool = nn.MaxPool2d(2) if pooling else None
        self.relu3 = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, inputs, h, w)`` to ``(batch, outputs, h, w)``, halved when it pools."""
        residual = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out)) + residual
        return self.relu3(out if self.maxpool is None else self.maxpool(out))


class FewShotResNet(Encoder):
    """Stages ``layer1`` ... ``layer4`` and the mean over positions, for images of any size.

    Args:
        stages: The four stages.
        out_features: Channels that come out of the last one.
        smallest_image: Least height and width in pixels that the poolings leave something of.
        layout: Its taps.
    """

    def __init__(
        self, stages: Sequence[nn.Module], out_features: int, smallest_image: int, layout: Layout
    ) -> None:
        super().__init__()
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.out_features = out_features
        self.smallest_image = smallest_image
        self.layout = layout
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``(batch, 3, h, w)`` to features ``(batch, out_features)``."""
        self.check_images(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.avgpool(x).flatten(1)


def pooled_resnet(blocks: Sequence[int], num_classes: int | None, head: str = "linear") -> nn.Module:
    """Builds a ResNet whose stages start with a block that pools.

    Args:
        blocks: Blocks of each of the four stages.
        num_classes: Size of the output; ``None`` leaves the head out.
        head: ``linear``, ``cosine`` or ``squared_euclidean``.

    Raises:
        UserError: There is no such head.
    """
    stages = [
        nn.Sequential(
            Block(inputs, outputs, projection=True, pooling=True),
            *(Block(outputs, outputs, projection=False, pooling=False) for _ in range(1, count)),
        )
        for inputs, outputs, count in zip((3, *WIDTHS), WIDTHS, blocks, strict=False)
    ]
    layout = Layout(
        stages={stage: f"layer{stage}" for stage in (1, 2, 3, 4)},
        preactivations={
            stage: f"layer{stage}.{count - 1}.relu3{INPUT}" for stage, count in enumerate(blocks, 1)
        },
        head=None,
        final_map="avgpool:input",
    )
    return with_head(FewShotResNet(stages, WIDTHS[-1], 16, layout), num_classes, head)


def resnet12(
    widths: Sequence[int], num_classes: int | None, head: str = "linear", pooling: bool = False
) -> nn.Module:
    """Builds a ResNet-12 of one block per stage, of vision_weak_to_strong or few-shot-meta-baseline.

    Without pooling all its maps have the size of the image, so that its layout has no stages; its
    layers can be tapped by their paths, ``layer1`` ... ``layer4``.

    Args:
        widths: Channels of the four stages.
        num_classes: Size of the output; ``None`` leaves the head out.
        head: ``linear``, ``cosine`` or ``squared_euclidean``.
        pooling: Whether stages max-pool, as in few-shot-meta-baseline; its checkpoints need it.

    Raises:
        UserError: There is no such head.
    """
    stages = [
        Block(inputs, outputs, projection=True, pooling=pooling)
        for inputs, outputs in zip((3, *widths), widths, strict=False)
    ]
    numbers = (1, 2, 3, 4) if pooling else ()
    layout = Layout(
        stages={stage: f"layer{stage}" for stage in numbers},
        preactivations={stage: f"layer{stage}.relu3{INPUT}" for stage in numbers},
        head=None,
        final_map="avgpool:input",
    )
    return with_head(FewShotResNet(stages, widths[-1], 16 if pooling else 1, layout), num_classes, head)


MODELS = {
    "resnet12": ZooEntry(partial(resnet12, WIDTHS), IMAGE_SIZE, encoder=True),
    "resnet12-wide": ZooEntry(partial(resnet12, WIDE_WIDTHS), IMAGE_SIZE, encoder=True),
    "resnet12_bottle": ZooEntry(partial(pooled_resnet, (1, 1, 1, 1)), IMAGE_SIZE, encoder=True),
    "resnet18_bottle": ZooEntry(partial(pooled_resnet, (1, 2, 2, 1)), IMAGE_SIZE, encoder=True),
    "resnet36_bottle": ZooEntry(partial(pooled_resnet, (2, 3, 5, 2)), IMAGE_SIZE, encoder=True),
    "resnet50_bottle": ZooEntry(partial(pooled_resnet, (3, 4, 6, 3)), IMAGE_SIZE, encoder=True),
}
