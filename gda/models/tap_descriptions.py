"""What a tap gives: shape, stride and activation, found without arithmetic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gda.errors import UserError
from gda.models.dry_run import dry_run
from gda.models.taps import FeatureTaps, tap_paths, unwrap


@dataclass(frozen=True)
class TapDescription:
    """What a tap gives, known from one dry forward pass.

    Attributes:
        path: Module path; ends in ``:input`` where the module's input is meant.
        shape: Shape without the batch: ``(channels, height, width)`` of a map, ``(tokens, width)`` of
            token maps, ``(width,)`` of a vector.
        stride: Input pixels per pixel of the map (per token and direction of token maps); ``None``
            for a vector.
        activated: Whether the values come out of an activation function, at most pooled, reshaped or
            dropped out since.
        prefix_tokens: Class and register tokens before those of the image, in token maps.
    """

    path: str
    shape: tuple[int, ...]
    stride: float | None
    activated: bool
    prefix_tokens: int = 0


def describe(model: nn.Module, names: Sequence[str], image_size: int) -> dict[str, TapDescription]:
    """Finds shape and stride of taps by one forward pass without arithmetic, and leaves no trace.

    Running statistics, gradients, the training mode and torch's random state stay as they were.

    Args:
        model: The model, on any device, ``meta`` included; compiled ones are run uncompiled.
        names: Taps as in :func:`features`.
        image_size: Height and width of the images.

    Returns:
        What each tap gives, by name.

    Raises:
        UserError: As :func:`features`, or the model can't take images of this size, or a tapped
            module gives no tensor or is not reached.
    """
    inner = unwrap(model)
    paths = tap_paths(inner, names)
    with FeatureTaps(inner, names) as taps:
        dry_run(inner, image_size)
        found = taps.collect()
    descriptions = {}
    for name in names:
        if not isinstance(found.get(name), Tensor):
            what = "is not reached by a forward pass" if name not in found else "puts out no tensor"
            raise UserError(f"the module {paths[name]!r} can't be tapped: it {what}")
        shape = tuple(found[name].shape[1:])
        prefix = getattr(inner, "num_prefix_tokens", 0) if len(shape) == 2 else 0
        descriptions[name] = TapDescription(
            paths[name], shape, _stride(shape, image_size, prefix), _is_activated(found[name].grad_fn), prefix
        )
    return descriptions


def _stride(shape: tuple[int, ...], image_size: int, prefix_tokens: int) -> float | None:
    if len(shape) == 3:
        return image_size / shape[1]
    if len(shape) == 2:
        return image_size / math.sqrt(max(1, shape[0] - prefix_tokens))
    return None


# Nodes of the autograd graph that keep the sign of what comes in.
_PASSES = (
    *("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "Mean", "Dropout", "NativeDropout"),
    *("View", "Reshape", "Unsafe", "Squeeze", "Unsqueeze", "Transpose", "Permute", "Select", "Slice"),
    *("Clone", "Alias", "ToCopy"),
)
_ACTIVATIONS = (
    *("Relu", "LeakyRelu", "Prelu", "Rrelu", "Threshold", "Elu", "Gelu", "Silu", "Mish", "Softplus"),
    *("Hardtanh", "Hardswish", "Hardsigmoid", "Sigmoid", "Tanh"),
)


def _is_activated(node: Any) -> bool:
    while node is not None:
        name = type(node).__name__
        if name.startswith(_ACTIVATIONS):
            return True
        if not name.startswith(_PASSES) or not node.next_functions:
            return False
        node = node.next_functions[0][0]
    return False
