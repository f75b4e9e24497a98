"""Says in words where a file's weights and a model differ.

Each function looks at the part of the weights that the model asks for
(:func:`gda.models.weights.state_names.part_for`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gda.models.weights.state_names import OPTIONAL, part_for
from gda.models.weights.weight_files import printable


def mismatches(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Says where a state dictionary and a model differ; empty when it fits.

    Only names, shapes and types are compared; no number is looked at.

    Args:
        model: The model; may be on the meta device.
        state: Weights by name.
    """
    wanted = model.state_dict()
    state = part_for(model, state)
    missing = [key for key in wanted if key not in state and not key.endswith(OPTIONAL)]
    extra = [printable(key) for key in state if key not in wanted]
    common = {key: value for key, value in wanted.items() if key in state}
    shapes = [
        f"{key} is {_shape(state[key])} in the file and {_shape(value)} in the model"
        for key, value in common.items()
        if state[key].shape != value.shape
    ]
    kinds = [
        f"{key} is {_kind(state[key])} in the file and {_kind(value)} in the model"
        for key, value in common.items()
        if state[key].is_floating_point() != value.is_floating_point()
    ]
    differences = (
        (shapes, "shapes differ"),
        (kinds, "types differ"),
        (missing, "the file lacks"),
        (extra, "the model has no"),
    )
    return [_some(items, what) for items, what in differences if items]


def class_counts(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Finds out whether weights fit a model but for the number of classes.

    That is so where all names agree, and the shapes that differ do so in their first length alone,
    which is one number throughout the file and another throughout the model.

    Args:
        model: The model; may be on the meta device.
        state: Weights by name.

    Returns:
        The numbers of classes of the weights and of the model; ``None`` where more differs, or nothing.
    """
    wanted = model.state_dict()
    state = part_for(model, state)
    names = {key for key in (*wanted, *state) if not key.endswith(OPTIONAL)}
    if any(key not in wanted or key not in state for key in names):
        return None
    different = [key for key in names if state[key].shape != wanted[key].shape]
    if any(not state[key].ndim or state[key].shape[1:] != wanted[key].shape[1:] for key in different):
        return None
    counts = {(state[key].shape[0], wanted[key].shape[0]) for key in different}
    return counts.pop() if len(counts) == 1 else None


def not_finite(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Says which weights are NaN or infinite in the model's own precision; ``None`` when all are finite.

    Args:
        model: The model, which the weights fit.
        state: Weights by name.
    """
    wanted = model.state_dict()
    state = part_for(model, state)
    broken = [
        key
        for key, value in wanted.items()
        if value.is_floating_point() and key in state and not _finite(state[key], value.dtype)
    ]
    return _some(broken, "NaN or infinite values in") if broken else None


def _finite(value: Tensor, dtype: torch.dtype) -> bool:
    return bool(torch.isfinite(value.to(dtype)).all())


def _shape(value: Tensor) -> str:
    return str(tuple(value.shape))


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _some(items: list[str], what: str, most: int = 4) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"{what}: {', '.join(items[:most])}{more}"
