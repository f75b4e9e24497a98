"""Follows a pickle of weights without building a tensor or calling anything that it names.

``torch.load(weights_only=True)`` runs no code, but it believes the sizes that a file claims: it
allocates what they say, and lets tensors reach beyond what was stored. So every instruction is followed
here first, with tensors as bare descriptions. What passes holds plain data, and strided tensors of plain
numbers that lie within their storages; and the work of reading it is bounded.
"""

import argparse
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from gda.models.weights.inert import NumpyDtype
from gda.models.weights.pickle_names import (
    AttributedDict,
    Function,
    Refused,
    Storage,
    StorageType,
    find,
    require_plain_key,
)

MAX_WORK = 2_000_000
"""Bound on a pickle's instructions and on the items that its calls copy."""

_CALL = 20  # what a call counts, in instructions


@dataclass(frozen=True)
class PickleFacts:
    """What a pickle holds.

    Attributes:
        value: Its content, with descriptions in place of tensors.
        storages: The storages that its tensors lie in, by key.
    """

    value: Any
    storages: dict[str, Storage]


def check_pickle(stream: BytesIO) -> PickleFacts:
    """Follows the pickle that begins where the stream stands, and leaves the stream at its end.

    Raises:
        Refused: It would run code, holds more than plain data and tensors, or is damaged.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.work(1)
            if opcode.name not in _STEPS:
                raise Refused(
                    f"it holds the pickle instruction {opcode.name}, which no file of weights needs"
                )
            _STEPS[opcode.name](machine, argument)
        return PickleFacts(machine.stack.pop(), machine.storages)
    except Refused:
        raise
    except Exception as error:  # a pickle that makes no sense fails in as many ways as there are steps
        raise Refused("it is damaged") from error


class _Machine:
    """The stack machine that a pickle is a program for."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self._work = 0

    def work(self, amount: int) -> None:
        self._work += amount
        if self._work > MAX_WORK:
            raise Refused("it holds far more than a model's weights and options")

    def pop_to_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.outer.pop()
        return items


_Step = Callable[[_Machine, Any], None]


def _push(machine: _Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _push_ascii(machine: _Machine, argument: str) -> None:
    """Takes the texts of Python 2, in which two readers could see two texts if they were not ASCII."""
    if not argument.isascii():
        raise Refused("it is damaged")
    machine.stack.append(argument)


def _mark(machine: _Machine, argument: None) -> None:
    machine.outer.append(machine.stack)
    machine.stack = []


def _tuple(count: int) -> _Step:
    def step(machine: _Machine, argument: None) -> None:
        items = [machine.stack.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(items)))

    return step


def _put(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _get(machine: _Machine, index: int) -> None:
    machine.stack.append(machine.memo[index])


def _append(machine: _Machine, argument: None) -> None:
    item = machine.stack.pop()
    _extend(machine.stack[-1], [item])


def _appends(machine: _Machine, argument: None) -> None:
    items = machine.pop_to_mark()
    _extend(machine.stack[-1], items)


def _extend(target: Any, items: list[Any]) -> None:
    if type(target) is not list:
        raise Refused("it appends to what is no list")
    target.extend(items)


def _set_item(machine: _Machine, argument: None) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _fill(machine.stack[-1], [key, value])


def _set_items(machine: _Machine, argument: None) -> None:
    items = machine.pop_to_mark()
    _fill(machine.stack[-1], items)


def _fill(target: Any, items: list[Any]) -> None:
    if type(target) not in (dict, AttributedDict):
        raise Refused("it puts entries into what is no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        require_plain_key(key)
        target[key] = value


def _global(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.stack.append(find(module, name))


def _stack_global(machine: _Machine, argument: None) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if isinstance(module, str) and isinstance(name, str):
        find(module, name)  # says what would run
    raise Refused("it is in another pickle protocol than torch.save's own; save it again with torch.save")


def _call(machine: _Machine, argument: None) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    if not isinstance(arguments, tuple) or not isinstance(function, Function):
        raise Refused("it calls what is no function")
    machine.work(_CALL + sum(len(each) for each in arguments if hasattr(each, "__len__")))
    machine.stack.append(function.call(*arguments))


def _new(machine: _Machine, argument: None) -> None:
    """Makes an object without attributes yet; only namespaces are pickled so."""
    function = machine.stack[-2]
    if isinstance(function, Function) and function.call is not argparse.Namespace:
        raise Refused(f"it makes an object of {function.name}, which no file of weights needs")
    _call(machine, argument)


def _build(machine: _Machine, argument: None) -> None:
    """Gives an object its attributes."""
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, NumpyDtype):
        target.__setstate__(state)
        return
    if type(state) is not dict or any(type(name) is not str for name in state):
        raise Refused("it gives attributes to what should have none")
    # Attributes could hide a dictionary's methods, so it gets only the one that state_dict() sets.
    namespace = isinstance(target, argparse.Namespace)
    if not namespace and not (isinstance(target, AttributedDict) and set(state) <= {"_metadata"}):
        raise Refused("it gives attributes to what should have none")


def _persistent(machine: _Machine, argument: None) -> None:
    """Reads the description of a storage, as ``torch.save`` writes it in both its formats."""
    kind, storage_type, key, location, numel, *view = machine.stack.pop()
    if kind != "storage" or not isinstance(storage_type, StorageType) or view not in ([], [None]):
        raise Refused("it holds other than numbers where tensors have theirs")
    if not isinstance(key, str) or not isinstance(location, str) or type(numel) is not int or numel < 0:
        raise Refused("it is damaged")
    storage = Storage(key, storage_type.dtype, numel)
    if machine.storages.setdefault(key, storage) != storage:
        raise Refused("it says two things about the same numbers")
    machine.stack.append(storage)


_STEPS: dict[str, _Step] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE"), _push),
    "SHORT_BINSTRING": _push_ascii,
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "MARK": _mark,
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.pop_to_mark())),
    **{f"TUPLE{count}": _tuple(count) for count in (1, 2, 3)},
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _get),
    "MEMOIZE": lambda machine, _: _put(machine, len(machine.memo)),
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _call,
    "NEWOBJ": _new,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
"""What each pickle instruction does; others are refused."""
