"""Changes of colour on whole batches, with the results of Pillow's ``ImageOps`` and ``ImageEnhance``.

Every operation maps uint8 images ``(batch, 3, height, width)`` with values 0 to 255 to the same kind,
on whatever device they lie. Most take one magnitude for each image, ``(batch,)``, float64. Pillow's
integer arithmetic is kept, and its float32 where it blends two images: the pixels are Pillow's, and the
same on every device. (Where Pillow was built for processors that multiply and add in one rounding, such
as ARM's, its own blends differ by a grey level now and then.)
"""

import torch
from torch import Tensor


def auto_contrast(images: Tensor) -> Tensor:
    """Stretches each channel linearly, so that its darkest value becomes 0 and its brightest 255.

    A channel of one value stays as it is.
    """
    lowest = images.amin(dim=(2, 3), keepdim=True).double()
    span = images.amax(dim=(2, 3), keepdim=True) - lowest
    # A division of two tensors: torch divides a number by a tensor in two roundings.
    scale = torch.full_like(span, 255) / span.clamp(min=1)
    stretched = (images * scale + -lowest * scale).trunc_().clamp_(0, 255).to(torch.uint8)
    return torch.where(span > 0, stretched, images)


def equalize(images: Tensor) -> Tensor:
    """Maps the values of each channel so that its histogram becomes as even as it can.

    A channel whose pixels, but for the brightest, are fewer than 255 stays as it is.
    """
    pixels = images.flatten(2).long()
    histogram = pixels.new_zeros(*pixels.shape[:2], 256).scatter_add_(2, pixels, torch.ones_like(pixels))
    darker = histogram.cumsum(dim=2) - histogram  # pixels below each grey level
    brightest = pixels.amax(dim=2, keepdim=True)
    step = darker.gather(2, brightest) // 255
    table = ((step // 2 + darker) // step.clamp(min=1)).clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.gather(2, pixels).to(torch.uint8).reshape(images.shape)


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Blends with black: factor 0 is black, 1 the image, and more is brighter."""
    return _blend(torch.zeros_like(images), images, factors)


def colour(images: Tensor, factors: Tensor) -> Tensor:
    """Blends with the grey image: factor 0 is grey, 1 the image, and more has more colour."""
    return _blend(_grey(images), images, factors)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Blends with the mean grey: factor 0 is one grey, 1 the image, and more has more contrast."""
    pixels = images.shape[2] * images.shape[3]
    doubled = 2 * _grey(images).sum(dim=(2, 3), keepdim=True, dtype=torch.int64)
    return _blend((doubled + pixels) // (2 * pixels), images, factors)  # the mean, halves up


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Blends with the smoothed image: factor 0 is smooth, 1 the image, and more is sharper.

    The kernel has 5 in the middle and 1 around it, over 13; the outermost pixels are not smoothed.
    """
    levels = images.int()
    rows = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    weighted = around + 4 * levels[:, :, 1:-1, 1:-1]
    levels[:, :, 1:-1, 1:-1] = (2 * weighted + 13) // 26  # nearest; a sum of 13ths is never a half
    return _blend(levels, images, factors)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps the leading bits of every value, 1 to 8 of them; fractions of a bit are cut off."""
    kept = 256 - 2 ** (8 - bits.long())
    return images & _per_image(kept.to(torch.uint8), images)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Inverts the values that are not below the threshold, 0 (all) to 256 (none)."""
    return torch.where(images < _per_image(thresholds, images), images, 255 - images)


def _grey(images: Tensor) -> Tensor:
    """Luminance (ITU-R 601-2) in Pillow's fixed-point numbers, ``(batch, 1, height, width)``, int32."""
    red, green, blue = images.int().split(1, dim=1)
    return (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16


def _blend(start: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    """Goes from ``start`` (factor 0) to the images (factor 1) and beyond; fractions are cut off."""
    start = start.float()
    way = (images.float() - start).mul_(_per_image(factors.float(), images))
    return way.add_(start).clamp_(0, 255).to(torch.uint8)


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """Brings one value for each image to where the images lie, ``(batch, 1, 1, 1)``."""
    return values.to(images.device)[:, None, None, None]
