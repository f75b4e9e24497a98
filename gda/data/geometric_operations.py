"""Moves whole batches about, with the results of Pillow's ``Image.transform`` and ``Image.rotate``.

Every operation maps uint8 images ``(batch, channels, height, width)`` to the same kind, on whatever
device they lie, and takes one magnitude for each image, ``(batch,)``, float64. Every pixel of the result
is the nearest one of the image, or black where that lies outside. The places are Pillow's 16.16
fixed-point numbers, and come from matrices made on the CPU: the pixels are Pillow's, and the same on
every device.
"""

import torch
from torch import Tensor

ONE = 2**16  # one pixel in Pillow's fixed-point numbers
UNCHANGED = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Fills every pixel ``(x, y)`` from the image's place ``(a x + b y + c, d x + e y + f)``.

    Args:
        images: ``(batch, channels, height, width)``, uint8.
        matrices: ``a, b, c, d, e, f`` of each image, ``(batch, 6)``, float64, on the CPU; ``c`` and
            ``f`` in pixels.

    Returns:
        Images of the same shape, uint8.
    """
    height, width = images.shape[2:]
    a, b, c, d, e, f = matrices.unbind(dim=1)
    centred = torch.stack([a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5])
    fixed = (centred * ONE + 0.5).floor().long().to(images.device)[:, :, None, None]
    x = torch.arange(width, device=images.device)
    y = torch.arange(height, device=images.device)[:, None]
    column = (fixed[2] + x * fixed[0] + y * fixed[1]) >> 16
    row = (fixed[5] + x * fixed[3] + y * fixed[4]) >> 16
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = row.clamp_(0, height - 1) * width + column.clamp_(0, width - 1)
    place = place.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, place).reshape(images.shape) * inside[:, None]


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turns images about their centre, counter-clockwise."""
    height, width = images.shape[2:]
    angle = -degrees.deg2rad()
    cosine, sine = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    right, down = cosine * -x + sine * -y + x, -sine * -x + cosine * -y + y
    return affine(images, torch.stack([cosine, sine, right, -sine, cosine, down], dim=1))


def shear_x(images: Tensor, shears: Tensor) -> Tensor:
    """Takes every row from ``shear`` times its place further right."""
    return affine(images, _with(1, shears))


def shear_y(images: Tensor, shears: Tensor) -> Tensor:
    """Takes every column from ``shear`` times its place further down."""
    return affine(images, _with(3, shears))


def translate_x(images: Tensor, shares: Tensor) -> Tensor:
    """Moves images to the left by a share of their width; to the right where it is negative."""
    return affine(images, _with(2, _whole(shares * images.shape[3])))


def translate_y(images: Tensor, shares: Tensor) -> Tensor:
    """Moves images up by a share of their height; down where it is negative."""
    return affine(images, _with(5, _whole(shares * images.shape[2])))


def _with(coefficient: int, values: Tensor) -> Tensor:
    """Returns matrices that leave images alone but for one coefficient."""
    matrices = torch.tensor(UNCHANGED, dtype=torch.float64).repeat(len(values), 1)
    matrices[:, coefficient] = values
    return matrices


def _whole(pixels: Tensor) -> Tensor:
    """Nearest whole pixel, halves up: Pillow moves images along the axes without fixed-point numbers."""
    return (pixels + 0.5).floor()
