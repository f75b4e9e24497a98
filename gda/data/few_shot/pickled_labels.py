"""Labels of published pickles: whole numbers, counted from 0 within a split."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gda.data.few_shot.pickled_array import PickledArray, Refused
from gda.errors import UserError


def entry(content: Any, key: str, path: Path) -> Any:
    """Returns an entry of a pickled dictionary.

    Raises:
        UserError: There is none; the message names those that there are.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dictionary with {key!r}")
    for name in (key, key.encode()):  # Python 2 stored names as bytes
        if name in content:
            return content[name]
    raise UserError(f"{path} has no entry {key!r}; it has {', '.join(map(repr, content)) or 'none'}")


def class_ids(content: Any, path: Path) -> Tensor:
    """Returns the entry ``labels``, as it is written in the file.

    Raises:
        UserError: There is none, or it is not a list or array of whole numbers from 0.
    """
    labels = entry(content, "labels", path)
    try:
        values = np.asarray(labels.numpy() if isinstance(labels, PickledArray) else labels)
    except (Refused, ValueError) as error:
        raise UserError(f"{path}: 'labels' is no list of whole numbers") from error
    whole = values.ndim == 1 and len(values) > 0 and values.dtype.kind in "iuf"
    if not whole or (values != np.floor(values)).any() or values.min() < 0 or values.max() >= 2**31:
        raise UserError(f"{path}: 'labels' is no list of whole numbers from 0")
    return torch.from_numpy(values.astype(np.int64))


def from_zero(
    labels: Tensor, names: Mapping[int, str], smallest: int | None = None
) -> tuple[tuple[str, ...], Tensor]:
    """Shifts class ids so that the smallest becomes 0, as published code does.

    Ids that don't occur between the smallest and the largest stay classes, without images.

    Args:
        labels: Class ids as the file has them, ``(N,)``.
        names: Names of class ids; a class without one is called by its id.
        smallest: The id that becomes 0; ``None`` takes the smallest of ``labels``.

    Returns:
        Names of the classes, and the shifted ids.
    """
    first = int(labels.min()) if smallest is None else smallest
    classes = tuple(names.get(number, str(number)) for number in range(first, int(labels.max()) + 1))
    return classes, labels - first
