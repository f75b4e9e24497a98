"""Scans the command line for unknown names before Hydra stops at the first of them.

Only Hydra is imported here, so that ``--help`` and ``--cfg job`` answer at once; what a config calls is
imported for the answer to a name that it leaves out.
"""

import inspect
import itertools
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from gda.config.faults import ConfigFaults, Fault
from gda.config.help import PLACES, help_text
from gda.suggestions import did_you_mean, near

_MOST_COMBINATIONS = 64  # of swept groups that are composed to look keys up: 60 ms each


def answer_or_stop(config_folder: Path, argv: Sequence[str] | None = None) -> None:
    """Answers ``--help``, and exits with one report of all unknown names on the command line.

    Args:
        config_folder: The project's ``conf``.
        argv: The command line without the program's name; by default this process's.
    """
    if argv is None:
        sys.argv[1:] = _flags_first(sys.argv[1:])
        argv = sys.argv[1:]
    options, unknown = get_args_parser().parse_known_args(list(argv))
    if unknown or options.hydra_help or options.shell_completion:
        return  # nothing will run, or argparse has its own words for an unknown flag
    folders = [config_folder]
    if options.config_dir:
        folders.append(Path(options.config_dir))
        if not folders[-1].is_dir():
            here = [each.name for each in folders[-1].absolute().parent.glob("*/")]
            hint = did_you_mean(folders[-1].name, here) if near(folders[-1].name, here) else ""
            fault = Fault("--config-dir", f"there is no folder {options.config_dir}; {hint}".rstrip("; "))
            sys.stderr.write(f"{ConfigFaults([fault])}\n")
            raise SystemExit(1)
    if options.help:
        sys.stdout.write(help_text(_groups(folders)))
        raise SystemExit(0)
    faults = scan(options.overrides, folders)
    if faults:
        sys.stderr.write(f"{ConfigFaults(faults)}\n")
        raise SystemExit(1)


def _flags_first(argv: Sequence[str]) -> list[str]:
    """Moves flags before overrides: Hydra's parser refuses overrides on both sides of a flag."""
    flags: list[str] = []
    overrides: list[str] = []
    takes_value = {
        name
        for action in get_args_parser()._actions
        for name in action.option_strings
        if action.nargs is None
    }
    waiting = False
    for argument in argv:
        (flags if waiting or argument.startswith("-") else overrides).append(argument)
        waiting = argument in takes_value
    return [*flags, *overrides]


def scan(overrides: Sequence[str], folders: Sequence[Path]) -> list[Fault]:
    """Finds unknown groups, choices and keys, and overrides that can't be read.

    Args:
        overrides: Hydra overrides as typed, sweeps included.
        folders: Config folders, the project's first.
    """
    parser = OverridesParser.create()
    parsed, faults = [], []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException as error:
            reason = " ".join(str(error).split())
            faults.append(Fault(text, f"this override can't be read ({reason})", "quote it: 'key=\"value\"'"))
    groups = _groups(folders)
    root = OmegaConf.load(folders[0] / "config.yaml")
    top_level = set(root) - {"defaults", "hydra"}
    rooted = {str(key).split()[-1] for each in root.defaults if isinstance(each, DictConfig) for key in each}
    dotted = []
    for override in parsed:
        key = override.key_or_group
        if key.split("/")[0].split(".")[0] == "hydra" or override.is_delete():
            continue
        if key in groups:
            faults.extend(_unknown_choices(override, groups[key]) or _misplaced(override, rooted))
        elif "." in key:
            dotted.append(override)
        elif key not in top_level and not override.is_add() and not override.is_force_add():
            hint = did_you_mean(key, [*(group for group in groups if "/" not in group), *top_level])
            match = near(key, [*groups, *top_level], 1)
            fix = f"{match[0]}={_value_text(override)}" if match else ""
            faults.append(Fault(key, f"there is no config group or key of this name; {hint}", fix))
    # A group with an unknown choice composes with its default, and its own keys are left for later.
    faulty = {fault.where for fault in faults}
    chosen = [each for each in parsed if each.key_or_group in groups and each.key_or_group not in faulty]
    asked = [each for each in dotted if each.key_or_group.split(".")[0] not in faulty]
    return faults + (_unknown_keys(asked, chosen, folders) if asked else [])


def _groups(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Returns the choices of every config group, by the group's name."""
    groups: dict[str, set[str]] = {}
    for folder in folders:
        for file in folder.rglob("*.yaml"):
            parts = file.relative_to(folder).with_suffix("").parts
            if len(parts) < 2:
                continue
            for cut in range(1, len(parts)):
                groups.setdefault("/".join(parts[:cut]), set()).add("/".join(parts[cut:]))
    return {group: sorted(choices) for group, choices in groups.items()}


def _unknown_choices(override: Override, choices: Sequence[str]) -> list[Fault]:
    faults = []
    for choice in _choices(override):
        if choice is None or choice.lower() == "null":
            fault = Fault(override.key_or_group, "null is not a choice", f"{override.key_or_group}=none")
            faults.append(fault)
        elif choice.removesuffix(".yaml") not in choices:
            matches = near(choice, choices, 1)
            fix = f"{override.key_or_group}={matches[0]}" if matches else ""
            what = f"{choice!r} is not one of its choices; {did_you_mean(choice, choices)}"
            faults.append(Fault(override.key_or_group, what, fix))
    return faults


def _misplaced(override: Override, rooted: Collection[str]) -> list[Fault]:
    """Says where a group belongs that is part of another node, such as a recipe."""
    key = override.key_or_group
    if key in rooted or override.package is not None or override.is_add() or key not in PLACES:
        return []
    fix = f"{key}@{PLACES[key]}={_value_text(override)}"
    return [Fault(key, f"it is part of another node, {PLACES[key]}", fix)]


def _choices(override: Override) -> list[str | None]:
    """Returns the group choices an override names: one, or all of a sweep."""
    if override.is_sweep_override():
        return [str(value).strip("'\"") for value in override.sweep_string_iterator()]
    value = override.value()
    if isinstance(value, list):
        return [str(item) for item in value]
    return [None if value is None else str(value)]


def _unknown_keys(
    dotted: Sequence[Override], chosen: Sequence[Override], folders: Sequence[Path]
) -> list[Fault]:
    """Composes every combination of the chosen groups and looks the dotted keys up in each."""
    swept = [[(override, choice) for choice in _choices(override)] for override in chosen]
    faults: dict[str, Fault] = {}
    for combination in itertools.islice(itertools.product(*swept), _MOST_COMBINATIONS):
        config = _compose(combination, folders)
        if config is None:
            continue
        words = [
            f"{override.key_or_group}={choice}" for override, choice in combination if _is_sweep(override)
        ]
        for override in dotted:
            if override.key_or_group not in faults and not (override.is_add() or override.is_force_add()):
                faults.update(_unknown_key(override, config, " ".join(words)))
    return list(faults.values())


def _unknown_key(override: Override, config: DictConfig, cell: str) -> dict[str, Fault]:
    node: Any = config
    walked: list[str] = []
    for part in override.key_or_group.split("."):
        if not isinstance(node, DictConfig):
            break
        keys = [str(key) for key in node]  # with `in`, a key that still needs its value seems absent
        if part not in keys:
            place = (".".join(walked) or "the config") + (f" of {cell}" if cell else "")
            match = near(part, keys, 1)
            rest = override.key_or_group.split(".")[len(walked) + 1 :]
            value = _value_text(override)
            fix = f"{'.'.join([*walked, match[0], *rest])}={value}" if match else ""
            what = f"{place} has no {part!r}; {did_you_mean(part, keys)}"
            if not rest and _takes(node, part):
                what = f"{node['_target_']} takes {part!r}, and the config does not set it yet"
                fix = f"+{override.key_or_group}={value}"
            return {override.key_or_group: Fault(override.key_or_group, what, fix)}
        walked.append(part)
        node = node._get_node(part)
    return {}


def _takes(node: DictConfig, argument: str) -> bool:
    """Whether the class or function that a node calls has an argument that the node leaves out."""
    from gda.config.signature import TargetError, locate

    try:
        return argument in inspect.signature(locate(str(node.get("_target_", "")))).parameters
    except (TargetError, TypeError, ValueError):
        return False


def _value_text(override: Override) -> str:
    """Returns the value as it was typed, sweeps included."""
    return str(override.input_line).partition("=")[2]


def _is_sweep(override: Override) -> bool:
    return bool(override.is_sweep_override())


def _compose(chosen: Sequence[tuple[Override, str | None]], folders: Sequence[Path]) -> DictConfig | None:
    from hydra import compose, initialize_config_dir

    texts = []
    for override, choice in chosen:
        prefix = "+" if override.is_add() else ""
        texts.append(f"{prefix}{override.get_key_element().lstrip('+')}={choice}")
    if len(folders) > 1:
        texts.append(f"hydra.searchpath=[{','.join(f'file://{folder.resolve()}' for folder in folders[1:])}]")
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(folders[0].resolve())):
            return compose("config", overrides=texts)
    except Exception:  # Hydra itself will say what does not compose, in its own words
        return None
