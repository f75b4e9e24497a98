"""What feature terms share: tapped values as maps, and maps of two models brought to one size.

Sizes come from the dry forward pass that described the taps, never from tables of one network.
"""

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from gda.models.tap_descriptions import TapDescription


def stage_taps(stages: Sequence[int], suffix: str = "") -> tuple[str, ...]:
    """Returns the tap names of stages (see :mod:`gda.models.layout`), e.g. ``("stage2", "stage3")``.

    Args:
        stages: Stage numbers.
        suffix: ``":pre"`` for the maps before their last activation.
    """
    return tuple(f"stage{stage}{suffix}" for stage in stages)


def as_map(feature: Tensor, tap: TapDescription) -> Tensor:
    """Returns a tapped value as a map, ``(batch, channels, height, width)``.

    Token maps are folded into a square, without class and register tokens; a vector becomes a map of
    one pixel.

    Args:
        feature: What was tapped.
        tap: What the tap was described as.

    Raises:
        ValueError: The tokens of the image do not fill a square.
    """
    if feature.ndim == 4:
        return feature
    if feature.ndim == 2:
        return feature[:, :, None, None]
    tokens = feature[:, tap.prefix_tokens :]
    side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1]:
        raise ValueError(f"{tokens.shape[1]} image tokens do not fill a square map")
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def map_shape(tap: TapDescription) -> tuple[int, int, int]:
    """Returns channels, height and width of :func:`as_map`'s result.

    Raises:
        ValueError: The tokens of the image do not fill a square.
    """
    if len(tap.shape) == 3:
        channels, height, width = tap.shape
        return channels, height, width
    if len(tap.shape) == 1:
        return tap.shape[0], 1, 1
    tokens, channels = tap.shape
    side = math.isqrt(tokens - tap.prefix_tokens)
    if side * side != tokens - tap.prefix_tokens:
        raise ValueError(f"{tokens - tap.prefix_tokens} image tokens do not fill a square map")
    return channels, side, side


def to_smaller_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Pools the larger of two maps, on average, to height and width of the smaller.

    Args:
        student: ``(batch, channels, height, width)``.
        teacher: The same, of any channels, height and width.
    """
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return _pooled(student, size), _pooled(teacher, size)


def _pooled(feature: Tensor, size: tuple[int, int]) -> Tensor:
    return feature if feature.shape[2:] == size else F.adaptive_avg_pool2d(feature, size)
