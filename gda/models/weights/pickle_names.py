"""What a pickle of weights may name, and what each name stands for while the pickle is only followed.

Tensors become bare descriptions: :func:`find` returns, for ``torch._utils._rebuild_tensor_v2`` and its
like, a function that checks the numbers it is given and builds nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from gda.models.weights.inert import INERT

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

PLAIN_DTYPES = (*_STORAGES.values(), torch.uint16, torch.uint32, torch.uint64)
"""The number types that tensors may have."""

_MAX_DIMENSIONS = 64  # torch's own bound
_MAX_LENGTH = 2**40


class Refused(Exception):
    """The file is not read; the text says why, to stand after a colon."""


@dataclass(frozen=True)
class Function:
    """A name that can be called."""

    name: str
    call: Callable[..., Any]


@dataclass(frozen=True)
class StorageType:
    """The type of a storage's numbers; ``None`` where only the tensors in it have one."""

    dtype: torch.dtype | None


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file.

    Attributes:
        key: Its name.
        dtype: Type of the numbers; ``None`` for bytes whose type the tensors say.
        numel: How many numbers (or bytes) there are.
    """

    key: str
    dtype: torch.dtype | None
    numel: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * (1 if self.dtype is None else self.dtype.itemsize)


class CheckedTensor:
    """Stands for a tensor whose description has been checked."""


class AttributedDict(dict[Any, Any]):
    """Stands for an ordered dictionary, the only kind that may have attributes."""


def find(module: str, name: str) -> Any:
    """Returns what stands for a name.

    Raises:
        Refused: It is none that a file of weights needs.
    """
    full = f"{_RENAMED.get(module, module)}.{name}"
    if full in _VALUES:
        return _VALUES[full]
    if full in _FUNCTIONS:
        return Function(full, _FUNCTIONS[full])
    shown = ascii(full[:80])[1:-1]
    if full.startswith("torch._"):
        raise Refused(f"it holds {shown}, no plain tensor; save a state_dict() of plain tensors instead")
    raise Refused(f"it holds {shown}, which could run code; save the model's state_dict() instead")


_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # names of Python 2, which protocol 2 keeps


def require_plain_key(key: Any) -> None:
    """Refuses nested keys: hashing a deeply nested tuple overflows the interpreter's stack."""
    if not isinstance(key, str | bytes | int | float | None):
        raise Refused("it holds a dictionary or set of other than plain values")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> CheckedTensor:
    if not isinstance(storage, Storage) or storage.dtype is None:
        raise Refused("it holds a tensor without numbers")
    _require_within(storage.numel, offset, size, stride)
    return CheckedTensor()


def _tensor_v2(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> CheckedTensor:
    _require_bare(requires_grad, hooks, metadata)
    return _tensor(storage, offset, size, stride)


def _tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> CheckedTensor:
    _require_bare(requires_grad, hooks, metadata)
    if not isinstance(storage, Storage) or storage.dtype is not None or not isinstance(dtype, torch.dtype):
        raise Refused("it holds a tensor without numbers")
    _require_within(storage.nbytes // dtype.itemsize, offset, size, stride)
    return CheckedTensor()


def _parameter(tensor: Any, requires_grad: Any, hooks: Any) -> CheckedTensor:
    _require_bare(requires_grad, hooks, None)
    if not isinstance(tensor, CheckedTensor):
        raise Refused("it holds a parameter without numbers")
    return tensor


def _require_bare(requires_grad: Any, hooks: Any, metadata: Any) -> None:
    no_hooks = hooks is None or (isinstance(hooks, AttributedDict) and not hooks)
    if not isinstance(requires_grad, bool) or not no_hooks or metadata is not None:
        raise Refused("it holds a tensor that is more than its numbers")


def _require_within(numel: int, offset: Any, size: Any, stride: Any) -> None:
    """Checks that a tensor lies within ``numel`` numbers, and has no more of them than there are."""
    if not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise Refused("it holds a tensor without a shape")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > _MAX_DIMENSIONS:
        raise Refused("it holds a tensor of impossible shape")
    if any(type(number) is not int or not 0 <= number < _MAX_LENGTH for number in numbers):
        raise Refused("it holds a tensor of impossible shape")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    inside = offset <= numel if 0 in size else last < numel
    if not inside or prod(size) > numel:
        raise Refused("it holds a tensor that reaches beyond its numbers")


def _ordered_dict(pairs: Any = None) -> AttributedDict:
    """Files written by Python 2 give the entries as a list of lists; others add them afterwards."""
    if pairs is not None and type(pairs) is not list:
        raise Refused("it is damaged")
    entries = AttributedDict()
    for key, value in pairs or []:
        require_plain_key(key)
        entries[key] = value
    return entries


def _set(items: Any) -> set[Any]:
    for item in items:
        require_plain_key(item)
    return set(items)


def _counter(counts: Any) -> dict[Any, Any]:
    if type(counts) is not dict:
        raise Refused("it is damaged")
    return dict(counts)


def _size(lengths: Any) -> tuple[int, ...]:
    if not isinstance(lengths, tuple) or any(type(length) is not int for length in lengths):
        raise Refused("it is damaged")
    return lengths


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused("it is damaged")
    return text.encode("latin1")


_VALUES: dict[str, Any] = {
    **{f"torch.{name}": StorageType(dtype) for name, dtype in _STORAGES.items()},
    "torch.storage.UntypedStorage": StorageType(None),
    **{str(dtype): dtype for dtype in PLAIN_DTYPES},
}

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
    "builtins.set": _set,
    "_codecs.encode": _encode,
    "torch.device": torch.device,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    **INERT,
}
