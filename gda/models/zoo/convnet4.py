"""Conv-4, the four-layer encoder of few-shot learning.

Architecture: Vinyals et al., arXiv 1606.04080; Snell et al., arXiv 1703.05175. Parameter
names and shapes equal those of few-shot-meta-baseline, so its published weights load.
"""

from torch import Tensor, nn

from gda.errors import UserError
from gda.models.layout import INPUT, Layout
from gda.models.zoo.encoder_classifier import Encoder, with_head
from gda.models.zoo.entry import ZooEntry

WIDTH = 64
IMAGE_SIZE = 80


class ConvNet4(Encoder):
    """Four blocks of convolution, batch norm, 2x2 max-pooling and ReLU; the last map is flattened.

    Nothing is averaged over positions: the width of the features grows with the image, 64 at 16 to 31
    pixels (Omniglot's 28), 256 at 32, 1,600 at 80 and 84. Images of any size from 16 pixels on pass through;
    ``image_size`` only says what ``out_features`` is, which sizes a head.

    Pooling comes before the activation: both orders give the same values and gradients, this one has a
    quarter of the values to activate, and the map before the activation has the stage's scale.

    Args:
        image_size: Height and width of the images in pixels.

    Raises:
        UserError: The images are smaller than 16 pixels.
    """

    smallest_image = 16

    def __init__(self, image_size: int = IMAGE_SIZE) -> None:
        super().__init__()
        if image_size < self.smallest_image:
            raise UserError(
                f"convnet4 halves images four times, so it needs {self.smallest_image} pixels or more: "
                f"image_size={image_size} is too small"
            )
        self.encoder = nn.Sequential(_block(3), *(_block(WIDTH) for _ in range(3)))
        self.out_features = WIDTH * (image_size // 16) ** 2
        self.layout = Layout(
            stages={stage: f"encoder.{stage - 1}" for stage in (1, 2, 3, 4)},
            preactivations={stage: f"encoder.{stage - 1}.3{INPUT}" for stage in (1, 2, 3, 4)},
            head=None,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``(batch, 3, h, w)`` to features ``(batch, 64 * (h // 16) * (w // 16))``."""
        self.check_images(x)
        return self.encoder(x).flatten(1)


def _block(inputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.MaxPool2d(2), nn.ReLU()
    )


def convnet4(num_classes: int | None, head: str = "linear", image_size: int = IMAGE_SIZE) -> nn.Module:
    """Builds the encoder, with a head where there is a number of classes.

    Args:
        num_classes: Size of the output; ``None`` leaves the head out.
        head: ``linear``, ``cosine`` or ``squared_euclidean``.
        image_size: Height and width in pixels of the images that the head is for.

    Raises:
        UserError: The images are too small, or there is no such head.
    """
    return with_head(ConvNet4(image_size), num_classes, head)


MODELS = {"convnet4": ZooEntry(convnet4, IMAGE_SIZE, encoder=True)}
