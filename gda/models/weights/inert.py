"""What a file of weights may name beside tensors: plain data, nothing that acts.

Published checkpoints hold options as ``argparse.Namespace``, paths, and accuracies as numpy scalars.
numpy's own loaders are not called: what stands here reads such scalars as Python numbers.
"""

import argparse
import struct
from typing import Any

_NUMBERS = {
    "b1": "?",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "f2": "e",
    "f4": "f",
    "f8": "d",
}
"""Codes of numpy's plain numbers, and those of :mod:`struct`."""


class NumpyDtype:
    """The type of a number; stands in for ``numpy.dtype``.

    Args:
        code: numpy's code, such as ``f8``.
        align: Ignored, as is ``copy``.
        copy: Ignored.

    Raises:
        ValueError: The code is not that of a plain number.
    """

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        if not isinstance(code, str) or code not in _NUMBERS:
            raise ValueError(f"{code!r} is no plain number")
        self.format = "<" + _NUMBERS[code]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Takes the byte order, the second item of what numpy stores.

        Raises:
            ValueError: The state is not that of a plain number.
        """
        version, order, *others = state
        plain = all(each in (None, -1, 0) for each in others)
        if version not in (3, 4) or order not in ("<", ">", "|") or not plain:
            raise ValueError("not the state of a plain number")
        self.format = (">" if order == ">" else "<") + self.format[1]


def numpy_scalar(dtype: NumpyDtype, data: bytes) -> float:
    """Returns a number; stands in for numpy's ``scalar``.

    Raises:
        ValueError: The bytes are not one number of this type.
    """
    if not isinstance(dtype, NumpyDtype) or not isinstance(data, bytes):
        raise ValueError("not a plain number")
    if len(data) != struct.calcsize(dtype.format):
        raise ValueError(f"{len(data)} bytes are no number of this type")
    number: float = struct.unpack(dtype.format, data)[0]
    return number


def joined_path(*parts: str) -> str:
    """Returns a path as text; stands in for the classes of :mod:`pathlib`."""
    return "/".join(parts)


INERT: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    "numpy.dtype": NumpyDtype,
    "numpy.core.multiarray.scalar": numpy_scalar,
    "numpy._core.multiarray.scalar": numpy_scalar,
    "pathlib.PosixPath": joined_path,
    "pathlib._local.PosixPath": joined_path,
}
"""What is called for each name that a file may hold, beside those that torch allows by itself."""
