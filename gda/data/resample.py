"""Resizing whole batches as Pillow resizes single images, by matrix products.

Resizing one axis is a linear map: every output pixel is a weighted mean of the input pixels under a
filter kernel. Written as one matrix per image, crop boxes and kernels may differ within a batch.
Everything follows Pillow's ``Image.resize`` (libImaging/Resample.c): the kernel is stretched when
shrinking, cut off at the box and renormalised; weights are fixed-point numbers; the result is rounded
to 8 bits after the horizontal and again after the vertical pass. The products are of whole numbers
that float64 holds exactly, so the pixels are Pillow's, and the same on every device.

Pillow 13 began to take the vertical pass first where that saves work; here the horizontal one comes
first always, as in the versions that published results were made with.
"""

import torch
from torch import Tensor

ONE = 2**22  # the weight 1 in Pillow's fixed-point numbers


def axis_weights(start: Tensor, length: Tensor, cubic: Tensor, inputs: int, outputs: int) -> Tensor:
    """Makes the matrices that resize one axis of a box to ``outputs`` pixels.

    Args:
        start: First pixel of each image's box, ``(batch,)``.
        length: Pixels of each image's box, ``(batch,)``.
        cubic: True for the cubic kernel, false for the triangle (bilinear), ``(batch,)``.
        inputs: Pixels of the whole axis.
        outputs: Pixels wanted.

    Returns:
        ``(batch, outputs, inputs)``, float64: whole multiples of 1/ONE, times ONE. Rows sum to ONE
        but for rounding, and are zero outside the box.
    """
    start, length = start.double()[:, None, None], length.double()[:, None, None]
    scale = length / outputs
    place = torch.arange(outputs, device=start.device, dtype=torch.float64)[None, :, None] + 0.5
    pixel = torch.arange(inputs, device=start.device, dtype=torch.float64)[None, None, :] + 0.5
    distance = (pixel - (start + place * scale)).div_(scale.clamp(min=1)).abs_()
    distance.masked_fill_((pixel < start) | (pixel > start + length), 2)  # where both kernels are zero
    triangle = (1 - distance).clamp_(min=0)
    weights = torch.where(cubic[:, None, None], _cubic(distance, triangle), triangle)
    weights.mul_(ONE / weights.sum(dim=2, keepdim=True))
    return weights.add_(weights.sign().div_(2)).trunc_()  # halves away from zero


def apply_weights(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resizes a batch by its matrices.

    Args:
        images: ``(batch, channels, height, width)``, uint8.
        rows: Matrices of the vertical axis, ``(batch or 1, new height, height)``.
        columns: Matrices of the horizontal axis, ``(batch or 1, new width, width)``.

    Returns:
        ``(batch, channels, new height, new width)``, uint8.
    """
    batch, channels, height, width = images.shape
    # Channels stand between the axes, so that each pass is one product of plain matrices per image.
    pixels = images.permute(0, 2, 1, 3).double().reshape(batch, height * channels, width)
    pixels = _round(pixels @ columns.transpose(1, 2))
    pixels = _round(rows @ pixels.view(batch, height, -1))
    return pixels.to(torch.uint8).view(batch, rows.shape[1], channels, -1).permute(0, 2, 1, 3)


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Resizes whole images (bilinear, antialiased).

    Args:
        images: ``(batch, channels, h, w)``, uint8.
        height: New height in pixels.
        width: New width in pixels.

    Returns:
        ``(batch, channels, height, width)``, uint8; ``images`` itself when the size is the same.
    """
    old_height, old_width = images.shape[2:]
    if (old_height, old_width) == (height, width):
        return images
    zero = torch.zeros(1, device=images.device)
    rows = axis_weights(zero, zero + old_height, zero > 0, old_height, height)
    columns = axis_weights(zero, zero + old_width, zero > 0, old_width, width)
    return apply_weights(images, rows, columns)


def _round(sums: Tensor) -> Tensor:
    """Rounds weighted sums to whole grey levels, halves up, and cuts off a cubic kernel's overshoot."""
    return sums.div_(ONE).add_(0.5).floor_().clamp_(0, 255)


def _cubic(distance: Tensor, triangle: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -1/2, Pillow's (torch's own has -3/4 where it does not antialias).

    Its two branches, 1.5d^3 - 2.5d^2 + 1 up to 1 and -0.5d^3 + 2.5d^2 - 4d + 2 up to 2, in one
    expression of u = max(2 - d, 0) and v = max(1 - d, 0): u^2 (u - 1) / 2 + v^2 (1 - 2v).
    """
    wide = (2 - distance).clamp_(min=0)
    far = (wide - 1).mul_(wide).mul_(wide).div_(2)
    return far.add_((1 - 2 * triangle).mul_(triangle).mul_(triangle))
