"""Holds a config node against the signature of the class or function that it calls.

One mechanism checks everything: the root schema's dataclasses, and every ``_target_``, the user's
own included. It finds unknown, missing and mistyped arguments and numbers out of range, without
calling anything.
"""

import dataclasses
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

from gda.config.faults import Fault
from gda.ranges import Range
from gda.suggestions import did_you_mean

MISSING = "???"
HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}


class TargetError(Exception):
    """A ``_target_`` that does not lead to a class or function."""


def locate(target: str) -> Callable[..., Any]:
    """Imports the class or function that a dotted path names.

    Raises:
        TargetError: There is no such module or attribute; the message says which part is missing.
    """
    parts = target.split(".")
    for cut in range(len(parts), 0, -1):
        module_name = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (
                module_name == error.name or module_name.startswith(error.name + ".")
            ):
                continue
            raise TargetError(f"importing {module_name} failed: {error}") from error
        except Exception as error:
            raise TargetError(f"importing {module_name} failed: {type(error).__name__}: {error}") from error
        for position, part in enumerate(parts[cut:], cut):
            if not hasattr(found, part):
                public = [name for name in dir(found) if not name.startswith("_")]
                owner = ".".join(parts[:position])
                raise TargetError(f"{owner} has no {part!r}; {did_you_mean(part, public)}")
            found = getattr(found, part)
        if not callable(found):
            raise TargetError(f"{target} is not a class or function")
        return typing.cast(Callable[..., Any], found)
    raise TargetError(f"there is no module {parts[0]!r} (is its folder on the PYTHONPATH?)")


def construct(node: Mapping[str, Any], **supplied: Any) -> Any:
    """Calls a node's target, for nodes without nested targets whose construction does no work."""
    arguments = {key: value for key, value in node.items() if key not in HYDRA_KEYS}
    return locate(node["_target_"])(**arguments, **supplied)


def check_call(
    path: str,
    node: Mapping[str, Any],
    target: Callable[..., Any],
    *,
    supplied: Collection[str] = (),
    ignored: Collection[str] = (),
) -> list[Fault]:
    """Binds a config node to a signature.

    Args:
        path: Dotted path of the node, for the messages.
        node: The node as plain data; Hydra's own keys are skipped.
        target: The class or function that will be called.
        supplied: Arguments that the code adds at the call, not the config.
        ignored: Keys of the node that somebody else reads.

    Returns:
        All faults of the node's arguments, each with the override that would fix it. Values that are
        mappings with a ``_target_`` of their own are accepted here and checked on their own.
    """
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return []  # a built-in that does not say what it takes
    hints = _type_hints(target)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    name_of_target = getattr(target, "__name__", str(target))
    faults = []
    for key, value in node.items():
        where = f"{path}.{key}" if path else key
        if key in HYDRA_KEYS or key in ignored:
            continue
        if key not in named:
            if not takes_any:
                options = [name for name in named if name not in supplied]
                hint = did_you_mean(key, options)
                faults.append(Fault(where, f"{name_of_target} takes no {key!r}; {hint}"))
            continue
        if key in supplied:
            faults.append(Fault(where, f"{key!r} is set by the framework, not by the config", f"~{where}"))
        elif value == MISSING:
            faults.append(Fault(where, "a value is needed here", f"{where}=VALUE"))
        elif key in hints:
            faults.extend(check_value(where, value, hints[key], named[key].default))
    for name, parameter in named.items():
        where = f"{path}.{name}" if path else name
        if parameter.default is inspect.Parameter.empty and name not in node and name not in supplied:
            faults.append(Fault(where, f"{name_of_target} needs {name!r}", f"+{where}=VALUE"))
    return faults


def check_value(where: str, value: Any, hint: Any, default: Any = inspect.Parameter.empty) -> list[Fault]:
    """Checks one value against its type hint and the ranges annotated on it."""
    if isinstance(value, Mapping) and "_target_" in value:
        return []
    bounds: list[Range] = []
    while typing.get_origin(hint) is Annotated:
        hint, *extras = typing.get_args(hint)
        bounds.extend(extra for extra in extras if isinstance(extra, Range))
    expected = _mismatch(value, hint)
    fix = _default_fix(where, default)
    if expected:
        return [Fault(where, f"{_show(value)} is not {expected}", fix)]
    if typing.get_origin(hint) in (Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if not _mismatch(value, option)]
        return check_value(where, value, options[0], default)
    if isinstance(value, Mapping) and len(typing.get_args(hint)) == 2:
        kind = typing.get_args(hint)[1]
        return [fault for key, item in value.items() for fault in check_value(f"{where}.{key}", item, kind)]
    if isinstance(value, list | tuple) and typing.get_origin(hint) in (list, tuple, Sequence):
        found = [
            Fault(where, f"in {_show(value)}, {fault.what}", fix)
            for item, kind in zip(value, _item_kinds(len(value), hint), strict=False)
            for fault in check_value(where, item, kind)
        ]
        return found[:1]  # a list is overridden whole: one fault for its one place
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [
            Fault(where, f"{_show(value)} must be {bound}", fix)
            for bound in bounds
            if not bound.contains(value)
        ]
    return []


def _mismatch(value: Any, hint: Any) -> str:
    """Returns what was expected when ``value`` does not have the type ``hint``, else nothing."""
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        problems = [_mismatch(value, option) for option in arguments]
        return "" if "" in problems else " or ".join(problems)
    if origin is Literal:
        if value in arguments:
            return ""
        return f"one of {', '.join(map(repr, arguments))}"
    if hint is type(None):
        return "" if value is None else "null"
    if hint is bool:
        return "" if isinstance(value, bool) else "true or false"
    if hint is int:
        return "" if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    if hint is float:
        return "" if isinstance(value, int | float) and not isinstance(value, bool) else "a number"
    if hint is str:
        return "" if isinstance(value, str) else "text"
    if origin in (list, tuple, typing.get_origin(typing.Sequence[int])):
        return _sequence_mismatch(value, origin, arguments)
    if origin in (dict, typing.get_origin(typing.Mapping[str, int])) or hint is dict:
        return "" if isinstance(value, Mapping) else "a mapping"
    if dataclasses.is_dataclass(hint):
        return "" if isinstance(value, Mapping) else "a mapping"
    return ""  # other classes come from nested targets, checked on their own


def _sequence_mismatch(value: Any, origin: Any, arguments: tuple[Any, ...]) -> str:
    if not isinstance(value, list | tuple):
        return "a list, e.g. [1,2]"
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            return f"a list of {len(arguments)} values"
        problems = [_mismatch(item, kind) for item, kind in zip(value, arguments, strict=True)]
    else:
        problems = [_mismatch(item, arguments[0]) for item in value] if arguments else []
    problems = [problem for problem in problems if problem]
    return f"a list where each value is {problems[0]}" if problems else ""


def _item_kinds(count: int, hint: Any) -> tuple[Any, ...]:
    """Returns the type hints of the items of a list that has no mismatch."""
    kinds = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and Ellipsis not in kinds:
        return kinds
    return kinds[:1] * count


def _type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) and not dataclasses.is_dataclass(target) else target
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):
        return {}  # a third-party signature whose hints can't be resolved: names are still checked


def _show(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)


def _default_fix(where: str, default: Any) -> str:
    if default is inspect.Parameter.empty or not isinstance(default, bool | int | float | str | None):
        return ""
    spelled = str(default).lower() if isinstance(default, bool) else "null" if default is None else default
    return f"{where}={spelled}"
