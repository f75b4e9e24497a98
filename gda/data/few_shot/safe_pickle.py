"""Pickles of arrays and plain containers, followed step by step so that nothing in them can run.

A pickle is a program. Python's own reader runs it, and even one that admits few names can be made to
crash by a dictionary key nested deeply enough. Here every instruction is followed in Python instead:
the names that a file of images and labels needs stand for functions of this file, which check what
they are given; every other name or instruction is refused.
"""

import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from gda.data.few_shot.pickled_array import (
    PickledArray,
    PickledDtype,
    Refused,
    SkippedBytes,
    array_from_buffer,
    empty_array,
    number,
)
from gda.errors import UserError

SKIPPED_FROM = 64 * 2**20
"""Runs of this many bytes or more are not read where only the labels are wanted."""


def load_pickle(path: Path, *, labels_only: bool = False) -> Any:
    """Reads a pickle of arrays, numbers, texts, lists, tuples and dictionaries.

    Args:
        path: The file.
        labels_only: Pass over very long runs of bytes: arrays of images keep their shape only, and
            take no time and memory.

    Returns:
        What it holds, with a :class:`PickledArray` for every array.

    Raises:
        UserError: It would run code, holds anything else, or is damaged.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            return _follow(_Skipping(file, size) if labels_only else file, size)
    except Refused as error:
        raise UserError(f"{path} is not read: {error}") from error
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from error
    except Exception as error:  # a damaged pickle fails in as many ways as there are steps
        if labels_only:  # text can't be passed over, for its length is not that of its bytes
            return load_pickle(path)
        raise UserError(f"{path} is not read: it is damaged, or no pickle; fetch it again") from error


class _Skipping:
    """A file whose long reads are passed over."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.readline, self.tell = file.readline, file.tell

    def read(self, length: int) -> Any:
        if length < SKIPPED_FROM or self.tell() + length > self.size:
            return self.file.read(length)
        self.file.seek(length, 1)
        return SkippedBytes(length)


class _Machine:
    """The stack machine that a pickle is a program for."""

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.unencoded = size

    def encode(self, text: Any, encoding: Any) -> bytes:
        """Turns text into the bytes it stands for; each text once, else a small file fills the memory."""
        if not isinstance(text, str) or encoding != "latin1":
            raise Refused("it is damaged")
        self.unencoded -= len(text)
        if self.unencoded < 0:
            raise Refused("it holds far more than its size")
        return text.encode("latin1")

    def pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items


def _follow(file: Any, size: int) -> Any:
    machine = _Machine(size)
    for opcode, argument, _ in pickletools.genops(file):
        step = _STEPS.get(opcode.name)
        if step is None:
            raise Refused(f"it holds the pickle instruction {opcode.name}, which no file of images needs")
        step(machine, argument)
    return machine.stack.pop()


class _Name:
    """A name that a pickle may call."""

    def __init__(self, full: str) -> None:
        self.full = full


def _no_call(machine: _Machine, *arguments: Any) -> Any:
    raise Refused("it calls what only names a type")


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda machine, *arguments: function(*arguments)


_CORES = ("core", "_core")  # numpy 2 renamed it

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _no_call,
    "numpy.dtype": _plain(lambda code, align=None, copy=None: PickledDtype(code)),
    "_codecs.encode": _Machine.encode,
    "collections.OrderedDict": _plain(lambda: {}),
    **dict.fromkeys(("builtins.bytes", "__builtin__.bytes"), _plain(lambda: b"")),
    **{f"numpy.{core}.multiarray._reconstruct": _plain(empty_array) for core in _CORES},
    **{f"numpy.{core}.multiarray.scalar": _plain(number) for core in _CORES},
    **{f"numpy.{core}.numeric._frombuffer": _plain(array_from_buffer) for core in _CORES},
}
"""What each name that a pickle may hold stands for."""

_Step = Callable[[_Machine, Any], None]


def _push(machine: _Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _constant(make: Callable[[], Any]) -> _Step:
    return lambda machine, _: machine.stack.append(make())


def _mark(machine: _Machine, _: Any) -> None:
    machine.outer.append(machine.stack)
    machine.stack = []


def _tuple(count: int) -> _Step:
    def step(machine: _Machine, _: Any) -> None:
        items = tuple(machine.stack[-count:])
        if len(items) != count:
            raise Refused("it is damaged")
        machine.stack[-count:] = [items]

    return step


def _put(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _extend(machine: _Machine, items: list[Any]) -> None:
    if type(machine.stack[-1]) is not list:
        raise Refused("it appends to what is no list")
    machine.stack[-1].extend(items)


def _update(machine: _Machine, items: list[Any]) -> None:
    if type(machine.stack[-1]) is not dict:
        raise Refused("it puts entries into what is no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | bytes | int | float | None):  # hashing a nested key may crash
            raise Refused("it holds a dictionary with other keys than texts and numbers")
        machine.stack[-1][key] = value


def _dictionary(machine: _Machine, items: list[Any]) -> None:
    machine.stack.append({})
    _update(machine, items)


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _update(machine, [key, value])


def _name(machine: _Machine, argument: Any) -> None:
    """Finds what stands for ``module name``."""
    full = ".".join(str(argument).split(" ", 1))
    if full not in _FUNCTIONS:
        raise Refused(
            f"it holds {ascii(full[:80])[1:-1]}, which could run code; fetch the published file again"
        )
    machine.stack.append(_Name(full))


def _instance(machine: _Machine, argument: Any) -> None:
    """Refuses what only protocol 0 has, and says what it would have made."""
    _name(machine, argument)
    raise Refused("it makes an object, which no file of images needs")


def _stack_name(machine: _Machine, _: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    _name(machine, f"{module} {name}")


def _call(machine: _Machine, _: Any) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    if not isinstance(arguments, tuple) or not isinstance(function, _Name):
        raise Refused("it calls what is no function")
    machine.stack.append(_FUNCTIONS[function.full](machine, *arguments))


def _build(machine: _Machine, _: Any) -> None:
    """Completes a type, or an array from its version, shape, type, order and bytes."""
    state, target = machine.stack.pop(), machine.stack[-1]
    if isinstance(target, PickledDtype):
        target.set_order(state)
    elif isinstance(target, PickledArray) and isinstance(state, tuple) and len(state) == 5:
        _, shape, dtype, fortran, data = state
        target.fill(shape, dtype, "F" if fortran else "C", data)
    else:
        raise Refused("it gives attributes to what should have none")


_STEPS: dict[str, _Step] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"), _push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"), _push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _push),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "MARK": _mark,
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.pop_to_mark())),
    "LIST": lambda machine, _: _push(machine, machine.pop_to_mark()),
    "DICT": lambda machine, _: _dictionary(machine, machine.pop_to_mark()),
    **{f"TUPLE{count}": _tuple(count) for count in (1, 2, 3)},
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, i: _push(machine, machine.memo[i])),
    "MEMOIZE": lambda machine, _: _put(machine, len(machine.memo)),
    "APPEND": lambda machine, _: _extend(machine, [machine.stack.pop()]),
    "APPENDS": lambda machine, _: _extend(machine, machine.pop_to_mark()),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: _update(machine, machine.pop_to_mark()),
    "GLOBAL": _name,
    "INST": _instance,
    "STACK_GLOBAL": _stack_name,
    "REDUCE": _call,
    "BUILD": _build,
}
"""What each pickle instruction does; others are refused."""
