"""Which source code a job was submitted with, and what of it has changed on disk since then.

A queued job imports its code when it starts, which may be hours after its config was frozen. The
hashes kept at submission tell whether that is still the same code. Nothing here imports what it looks
at, torch least of all. ``conf/`` is no part of it: the config itself is frozen.
"""

import hashlib
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

OURS = {"gda": (".py", ".yaml"), "hydra_plugins.gda_launcher": (".py",)}
"""The packages of this project, and the endings of their source files."""

_OUR_NAMES = {package.partition(".")[0] for package in OURS}
_INSTALLED = {"site-packages", "dist-packages"}
_IMPORT = re.compile(rb"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import|import[ \t]+([\w., \t]+))", re.MULTILINE)


def targets_of(node: Any) -> set[str]:
    """Returns every ``_target_`` in a config, however deep.

    Args:
        node: A config as plain data, or any part of one.
    """
    if isinstance(node, Mapping):
        own = node.get("_target_")
        below = set().union(*map(targets_of, node.values()))
        return below | {own} if isinstance(own, str) else below
    if isinstance(node, list | tuple):
        return set().union(*map(targets_of, node))
    return set()


def code_files(targets: Collection[str] = ()) -> dict[str, str]:
    """Hashes the source code that runs would import now.

    That is this project's own packages, and of every target outside of them that is a user's own, its
    whole top package or module, with the user's own modules that this imports in turn. Installed
    packages and the standard library are left out: the versions in ``run.json`` name those.

    Args:
        targets: Dotted paths of classes and functions, as from :func:`targets_of`. Those that lead
            nowhere are left out: checking a config names them.

    Returns:
        SHA-256 by path; the paths begin at the folder that a package lies in (``gda/app.py``).
    """
    files = _our_files()
    waiting = known = set(targets)
    while waiting:
        found = {name: path for name, path in _user_files(waiting).items() if name not in files}
        files |= found
        waiting = set().union(*map(_imported, found.values())) - known
        known = known | waiting
    return _hashes(files)


def changed_files(before: Mapping[str, str]) -> list[str]:
    """Returns the paths that differ from an earlier :func:`code_files`: changed, gone, or new.

    Args:
        before: What it returned.
    """
    modules = [".".join(PurePosixPath(path).with_suffix("").parts) for path in before]
    now = _hashes(_our_files() | _user_files(modules))
    return sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))


def _our_files() -> dict[str, Path]:
    return {
        name: path
        for package, endings in OURS.items()
        for name, path in _files_below(package, [], endings).items()
    }


def _user_files(modules: Iterable[str]) -> dict[str, Path]:
    """Returns the files of the top packages of these dotted paths, where they are a user's own."""
    by_top: dict[str, list[str]] = {}
    for module in modules:
        by_top.setdefault(module.partition(".")[0], []).append(module)
    files: dict[str, Path] = {}
    for top, named in by_top.items():
        if top not in _OUR_NAMES and top not in sys.stdlib_module_names:
            files |= _files_below(top, named, (".py",))
    return files


def _files_below(package: str, named: Iterable[str], endings: tuple[str, ...]) -> dict[str, Path]:
    """Returns the source files of a package or module, by their path below its import root.

    Args:
        package: Its dotted path.
        named: Dotted paths of modules in it, or of things in those: the folders on the way to them are
            looked at in any case.
        endings: What the names of source files end in.
    """
    try:
        spec = find_spec(package)
    except (ImportError, ValueError, AttributeError):  # broken parents; __main__; odd import hooks
        return {}
    if spec is None:
        return {}
    prefix = PurePosixPath(*package.split("."))
    if spec.submodule_search_locations is None:
        path = Path(spec.origin or "")
        is_source = path.suffix == ".py" and _is_users(path, package)
        return {f"{prefix}.py": path} if is_source else {}
    starts = {prefix, *(folder for dotted in named for folder in PurePosixPath(*dotted.split(".")).parents)}
    files: dict[str, Path] = {}
    for location in reversed(spec.submodule_search_locations):  # the first one wins, as in Python
        folder = Path(location)
        if _is_users(folder, package):
            for start in [each for each in starts if each.is_relative_to(prefix)]:
                for path in _source_files(folder / start.relative_to(prefix), endings):
                    files[str(prefix / path.relative_to(folder))] = path
    return files


def _source_files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """Returns the source files in a folder, and in those below it that hold some.

    A folder without source ends the walk: it may be one of a million images.
    """
    files, below = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.endswith(endings) and entry.is_file():
                    files.append(folder / entry.name)
                elif entry.name.isidentifier() and entry.is_dir(follow_symlinks=False):
                    below.append(folder / entry.name)
    except OSError:  # no such folder, or one that may not be read
        return []
    return files and files + [path for each in below for path in _source_files(each, endings)]


def _is_users(path: Path, package: str) -> bool:
    return package in OURS or not _INSTALLED & set(path.parts)


def _imported(path: Path) -> set[str]:
    """Returns the dotted paths that a source file imports; what only looks like one does no harm."""
    names: set[str] = set()
    for origin, listed in _IMPORT.findall(_read(path) or b""):
        for each in (origin or listed).decode().split(","):
            names.update(each.split()[:1])  # what stands before an "as"
    return names


def _hashes(files: Mapping[str, Path]) -> dict[str, str]:
    contents = {name: _read(path) for name, path in sorted(files.items())}
    return {n: hashlib.sha256(content).hexdigest() for n, content in contents.items() if content is not None}


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:  # gone since it was listed
        return None
