"""Random augmentation: a few operations drawn for each image, with magnitudes of their own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from gda.data import colour_operations as colour
from gda.data import geometric_operations as geometry
from gda.data.transforms import Transform
from gda.ranges import Range


@dataclass(frozen=True)
class Operation:
    """An operation and the magnitudes that are drawn for it.

    Attributes:
        function: Called with the images ``(batch, 3, height, width)``, uint8, and with one magnitude
            for each, ``(batch,)``, float64, where there are magnitudes.
        magnitudes: The interval that they are drawn from uniformly; null for none.
    """

    function: Callable[..., Tensor]
    magnitudes: tuple[float, float] | None = None

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Applies the operation with magnitudes that lie at ``uniform``, in [0, 1), of the interval."""
        if self.magnitudes is None:
            return self.function(images)
        low, high = self.magnitudes
        return self.function(images, low + (high - low) * uniform)


def _unchanged(images: Tensor) -> Tensor:
    return images


OPERATIONS = {
    "auto_contrast": Operation(colour.auto_contrast),
    "brightness": Operation(colour.brightness, (0.05, 0.95)),
    "colour": Operation(colour.colour, (0.05, 0.95)),
    "contrast": Operation(colour.contrast, (0.05, 0.95)),
    "equalize": Operation(colour.equalize),
    "identity": Operation(_unchanged),
    "posterize": Operation(colour.posterize, (4, 8)),
    "rotate": Operation(geometry.rotate, (-30, 30)),
    "sharpness": Operation(colour.sharpness, (0.05, 0.95)),
    "shear_x": Operation(geometry.shear_x, (-0.3, 0.3)),
    "shear_y": Operation(geometry.shear_y, (-0.3, 0.3)),
    "solarize": Operation(colour.solarize, (0, 256)),
    "translate_x": Operation(geometry.translate_x, (-0.3, 0.3)),
    "translate_y": Operation(geometry.translate_y, (-0.3, 0.3)),
}
"""The operations of :class:`RandomAugment`, with the magnitudes of its source."""


class RandomAugment(Transform):
    """Applies operations drawn for each image with replacement, one after the other.

    Each of the 14 operations of `OPERATIONS` is equally likely, and its magnitude is uniform in its own
    interval, whatever the others'. Source: Cubuk et al., "RandAugment", arXiv 1909.13719, in the variant
    of FixMatch (Sohn et al., arXiv 2001.07685) without a common magnitude, with the operations and
    intervals of MLKD's strong view (the repository sunshangquan/logit-standardization-KD). That view
    ends in a :class:`gda.data.cutout.Cutout`.

    Args:
        count: Operations for each image.
    """

    random = True

    def __init__(self, count: Annotated[int, Range(minimum=1)] = 2) -> None:
        self.count = count

    def __call__(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Draws operations and magnitudes of each image."""
        chosen = torch.randint(len(OPERATIONS), (self.count, len(images)), generator=draws)
        uniform = torch.rand(self.count, len(images), generator=draws, dtype=torch.float64)
        for number in range(self.count):
            images = _apply(images, chosen[number], uniform[number])
        return images


def _apply(images: Tensor, chosen: Tensor, uniform: Tensor) -> Tensor:
    """Applies to each image the operation of the number chosen, ``(batch,)``; one call an operation."""
    order = chosen.argsort(stable=True)
    sizes = chosen.bincount(minlength=len(OPERATIONS)).tolist()  # on the CPU: no wait for the device
    groups = images[order.to(images.device)].split(sizes)
    parts = zip(OPERATIONS.values(), groups, uniform[order].split(sizes), strict=True)
    changed = torch.cat([operation(group, at) for operation, group, at in parts if len(group)])
    return changed[order.argsort().to(images.device)]
