"""Batched transforms of raw images: whole tensors, no per-image Python work.

Every transform maps uint8 images ``(batch, 3, height, width)`` with values 0 to 255 to the same
kind, on whatever device they lie. Random numbers are drawn on the CPU from the generator given, so
that CPU and GPU see the same draws, and for every image of the batch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gda.data.resample import apply_weights, axis_weights, resize
from gda.errors import UserError
from gda.ranges import Range, Share

Pixels = Annotated[int, Range(minimum=1)]


class Transform(ABC):
    """Base of all transforms.

    Attributes:
        random: Whether it draws random numbers; such a transform has no place in an evaluation.
    """

    random: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Transforms a batch.

        Args:
            images: ``(batch, 3, height, width)``, uint8.
            draws: CPU generator that random numbers come from.
        """

    def output_size(self, input_size: int) -> int:
        """Returns height and width that square images of ``input_size`` pixels come out with.

        Raises:
            UserError: Images of this size can't be transformed.
        """
        return input_size


class PadCrop(Transform):
    """Pads with black and crops at a random place to the old size.

    As torchvision's ``RandomCrop(size, padding=padding)`` on raw images.

    Args:
        padding: Pixels added on each side.
    """

    random = True

    def __init__(self, padding: Pixels = 4) -> None:
        self.padding = padding

    def __call__(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Draws one place for each image."""
        height, width = images.shape[2:]
        places = torch.randint(2 * self.padding + 1, (2, len(images)), generator=draws).to(images.device)
        padded = F.pad(images, [self.padding] * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: every place there is
        return windows[torch.arange(len(images), device=images.device), :, places[0], places[1]]


class HorizontalFlip(Transform):
    """Mirrors images left to right.

    Args:
        probability: Share of the images that is mirrored.
    """

    random = True

    def __init__(self, probability: Annotated[float, Share] = 0.5) -> None:
        self.probability = probability

    def __call__(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Draws for each image whether it is mirrored."""
        flipped = torch.rand(len(images), generator=draws) < self.probability
        return torch.where(flipped.to(images.device)[:, None, None, None], images.flip(-1), images)


class RandomResizedCrop(Transform):
    """Crops a box of random area and shape and resizes it to a square.

    The boxes follow the sampling law of torchvision's ``RandomResizedCrop`` (and timm's): area share
    uniform, aspect ratio uniform in the logarithm, ten tries, then the largest centred box that keeps
    the ratio. The pixels are those of Pillow's crop and resize (see :mod:`gda.data.resample`).

    Args:
        size: Height and width of the result in pixels.
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest width divided by height.
        interpolation: Kernel; ``random`` draws bilinear or bicubic for each image.
    """

    random = True
    tries = 10

    def __init__(
        self,
        size: Pixels,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: Literal["random", "bilinear", "bicubic"] = "bilinear",
    ) -> None:
        self.size = size
        self.scale = _interval("scale", scale, most=1.0)
        self.ratio = _interval("ratio", ratio, most=math.inf)
        self.interpolation = interpolation

    def __call__(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Draws box and kernel of each image."""
        height, width = images.shape[2:]
        boxes = self.boxes(len(images), height, width, draws).to(images.device)
        top, left, box_height, box_width = boxes.unbind(1)
        cubic = torch.rand(len(images), generator=draws) < 0.5
        if self.interpolation != "random":
            cubic = torch.full_like(cubic, self.interpolation == "bicubic")
        cubic = cubic.to(images.device)
        rows = axis_weights(top, box_height, cubic, height, self.size)
        columns = axis_weights(left, box_width, cubic, width, self.size)
        return apply_weights(images, rows, columns)

    def boxes(self, count: int, height: int, width: int, draws: torch.Generator) -> Tensor:
        """Draws crop boxes.

        Args:
            count: Number of boxes.
            height: Height of the images in pixels.
            width: Width of the images in pixels.
            draws: CPU generator.

        Returns:
            Top, left, height and width of each box in pixels, ``(count, 4)``, int64.
        """
        uniform = torch.rand(4, count, self.tries, generator=draws, dtype=torch.float64)
        area = height * width * (self.scale[0] + uniform[0] * (self.scale[1] - self.scale[0]))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = torch.exp(low + uniform[1] * (high - low))
        box_width = (area * ratio).sqrt().round().long()
        box_height = (area / ratio).sqrt().round().long()
        fits = (box_width > 0) & (box_width <= width) & (box_height > 0) & (box_height <= height)
        top = (uniform[2] * (height - box_height + 1)).long().clamp(max=height - box_height)
        left = (uniform[3] * (width - box_width + 1)).long().clamp(max=width - box_width)
        tried = torch.stack([top, left, box_height, box_width], dim=2)
        first = fits.int().argmax(dim=1)  # the first of equal maxima
        boxes = tried[torch.arange(count), first]
        return torch.where(fits.any(dim=1, keepdim=True), boxes, torch.tensor(self._fallback(height, width)))

    def _fallback(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns the centred box for images of which no random box was found."""
        box_height, box_width = height, width
        if width / height < self.ratio[0]:
            box_height = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            box_width = round(height * self.ratio[1])
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width

    def output_size(self, input_size: int) -> int:
        """Returns ``size``."""
        return self.size


class Resize(Transform):
    """Resizes the shorter side (bilinear, antialiased, as Pillow); the longer side keeps the ratio.

    Args:
        size: Length of the shorter side in pixels.
    """

    def __init__(self, size: Pixels) -> None:
        self.size = size

    def __call__(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Resizes all images alike."""
        height, width = images.shape[2:]
        shorter = min(height, width)
        return resize(images, self.size * height // shorter, self.size * width // shorter)

    def output_size(self, input_size: int) -> int:
        """Returns ``size``."""
        return self.size


class CenterCrop(Transform):
    """Cuts out the middle.

    Args:
        size: Height and width of the result in pixels.
    """

    def __init__(self, size: Pixels) -> None:
        self.size = size

    def __call__(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Crops all images alike."""
        height, width = images.shape[2:]
        self.output_size(min(height, width))
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return images[:, :, top : top + self.size, left : left + self.size]

    def output_size(self, input_size: int) -> int:
        """Returns ``size``.

        Raises:
            UserError: The images are smaller than that.
        """
        if input_size < self.size:
            raise UserError(f"CenterCrop can't cut {self.size} pixels out of images of {input_size} pixels")
        return self.size


def without_augmentation(
    transforms: Mapping[str, Transform | None], input_size: int
) -> dict[str, Transform | None]:
    """Returns transforms that only bring images to the size that others end with.

    Args:
        transforms: Named transforms, applied in order.
        input_size: Height and width of the images that they get.

    Raises:
        UserError: A transform can't take the size that reaches it.
    """
    size = input_size
    for transform in transforms.values():
        size = size if transform is None else transform.output_size(size)
    return {} if size == input_size else {"resize": Resize(size)}


def _interval(name: str, bounds: Sequence[float], most: float) -> tuple[float, float]:
    """Returns two ascending numbers above 0 and up to ``most``."""
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= most:
        raise UserError(f"{name}={list(bounds)} must be two ascending numbers above 0, at most {most:g}")
    return float(bounds[0]), float(bounds[1])
