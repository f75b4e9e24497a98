"""What stands for numpy arrays, types and numbers while a pickle that holds them is only followed."""

from math import prod
from typing import Any

import numpy as np


class Refused(Exception):
    """The file is not read; the text says why, to stand after a colon."""


class SkippedBytes:
    """Stands for a run of bytes in the file that was passed over.

    Args:
        length: How many bytes.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def decode(self, encoding: str) -> "SkippedBytes":
        """Returns itself: Python 2 stored bytes as text."""
        return self


class PickledArray:
    """A numpy array as the pickle holds it.

    Attributes:
        shape: Its shape.
        dtype: Its type, as numpy's code, such as ``<u1``; empty until the pickle has said it.
    """

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.dtype = ""
        self._order = "C"
        self._data: bytes | bytearray | str | SkippedBytes = b""

    def fill(self, shape: Any, dtype: Any, order: str, data: Any) -> None:
        """Takes the array's content.

        Raises:
            Refused: It is no array of plain numbers, or its bytes are not as many as its shape needs.
        """
        bytelike = isinstance(data, bytes | bytearray | str | SkippedBytes)
        if not isinstance(dtype, PickledDtype) or not bytelike:
            raise Refused("it holds an array of other than plain numbers")
        whole = isinstance(shape, tuple) and all(type(each) is int and each >= 0 for each in shape)
        if not whole or len(shape) > 32 or prod(shape) * np.dtype(dtype.code).itemsize != len(data):
            raise Refused("it is damaged: it holds an array whose shape does not fit its bytes")
        self.shape, self.dtype, self._order, self._data = shape, dtype.code, order, data

    def numpy(self) -> np.ndarray:
        """Returns the array; read-only where the pickle's bytes are.

        Raises:
            Refused: Its bytes were skipped, or the pickle has not said what they are.
        """
        if isinstance(self._data, SkippedBytes) or not self.dtype:
            raise Refused("it holds an array without its numbers")
        try:  # Python 2 stored bytes as text
            data = self._data.encode("latin1") if isinstance(self._data, str) else self._data
        except UnicodeEncodeError:
            raise Refused("it is damaged: it holds text where an array has its numbers") from None
        flat = np.frombuffer(data, np.dtype(self.dtype))
        return flat.reshape(self.shape, order="F" if self._order == "F" else "C")


class PickledDtype:
    """The type of an array's numbers.

    Args:
        code: numpy's code, such as ``u1``.
    """

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or code not in _PLAIN:
            raise Refused(f"it holds an array of {ascii(code)[:40]}, not of plain numbers")
        self.code = "<" + code

    def set_order(self, state: Any) -> None:
        """Takes the byte order, the second item of what numpy stores."""
        plain = isinstance(state, tuple) and len(state) >= 2 and state[1] in ("<", ">", "|", "=")
        if not plain or any(each not in (None, -1, 0) for each in state[2:]):
            raise Refused("it holds an array of other than plain numbers")
        self.code = (">" if state[1] == ">" else "<") + self.code[1:]


_PLAIN = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])


def empty_array(kind: Any, shape: Any, code: Any) -> PickledArray:
    """Returns an array that the pickle fills later; stands in for numpy's ``_reconstruct``."""
    return PickledArray()


def array_from_buffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> PickledArray:
    """Returns a full array; stands in for numpy's ``_frombuffer``.

    Raises:
        Refused: It is no array of plain numbers in C or Fortran order.
    """
    if order not in ("C", "F") or axes is not None:
        raise Refused("it holds an array in an order that is not known here; save it again in C order")
    array = PickledArray()
    array.fill(shape, dtype, order, data)
    return array


def number(dtype: Any, data: Any) -> int | float:
    """Returns a number; stands in for numpy's ``scalar``.

    Raises:
        Refused: The bytes are not one number of this type.
    """
    array = PickledArray()
    array.fill((), dtype, "C", data)
    value: int | float = array.numpy().item()
    return value
