"""Cutout: a square of one colour at a random place of each image."""

from typing import Annotated

import torch
from torch import Tensor

from gda.data.transforms import Transform
from gda.ranges import Range, Share

GreyLevel = Annotated[int, Range(minimum=0, maximum=255)]


class Cutout(Transform):
    """Paints over a square of each image.

    The square's side is uniform between 0 and ``max_side`` of the image's width. It begins half a side
    left of and above a point (at the border at the latest), reaches over one pixel more than the side's
    whole pixels and ends at the image's border. Source: DeVries and Taylor, arXiv 1708.04552, as MLKD's
    strong view draws it (the repository sunshangquan/logit-standardization-KD). There the point lies
    between 1 and the image's width and height, not between 0 and these; that is kept.

    Args:
        max_side: Longest side of the square, as a share of the image's width.
        colour: Red, green and blue of the square.
    """

    random = True

    def __init__(
        self,
        max_side: Annotated[float, Share] = 0.5,
        colour: tuple[GreyLevel, GreyLevel, GreyLevel] = (125, 123, 114),
    ) -> None:
        self.max_side = max_side
        self.colour = torch.tensor(list(colour), dtype=torch.uint8)[:, None, None]

    def __call__(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Draws side and place of each image's square."""
        height, width = images.shape[2:]
        uniform = torch.rand(3, len(images), generator=draws, dtype=torch.float64)
        side = self.max_side * width * uniform[0]
        columns = _covered(width, side, uniform[1], images.device)[:, None, None, :]
        rows = _covered(height, side, uniform[2], images.device)[:, None, :, None]
        return torch.where(rows & columns, self.colour.to(images.device), images)


def _covered(length: int, side: Tensor, uniform: Tensor, device: torch.device) -> Tensor:
    """Says which pixels of an axis each square covers, ``(batch, length)``, boolean."""
    point = length - (length - 1) * uniform
    first = (point - side / 2).clamp(min=0).trunc()
    last = torch.where(side > 0, (first + side).trunc(), -1)  # a side of 0 covers no pixel at all
    pixels = torch.arange(length, device=device)
    return (pixels >= first.to(device)[:, None]) & (pixels <= last.to(device)[:, None])
