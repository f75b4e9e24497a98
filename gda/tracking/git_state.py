"""The commit of the checkout that the code lies in, and what has been changed since."""

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import gda
from gda.tracking.atomic import write_bytes_atomic

DIFF_NAME = "code.diff"
MAX_DIFF_BYTES = 1_000_000

_MAX_UNTRACKED = 50
# What a person's git configuration could change in the texts that are parsed or hashed here.
_GIT_OPTIONS = (
    "status.showUntrackedFiles=normal",
    "diff.relative=false",
    "diff.noprefix=false",
    "diff.mnemonicPrefix=false",
)


def git_state() -> dict[str, Any] | None:
    """Say which commit the code is, and how it differs from it.

    Returns:
        A JSON-ready dict with the keys ``commit``, ``branch`` (both ``None`` where there is none),
        ``dirty``, ``diff_sha256`` (of the whole `working_diff`), ``diff_truncated`` (whether
        `write_working_diff` keeps its beginning only) and ``untracked``; ``None`` outside a checkout or
        without git.
    """
    if not _in_checkout():
        return None
    status = _git("status", "--porcelain=v2", "--branch", "-z")  # -z: paths from the root
    if status is None:
        return None
    headers: dict[str, str] = {}
    changed = False
    untracked: list[str] = []
    for line in status.split("\0"):
        if line.startswith("# "):
            key, _, value = line[2:].partition(" ")
            headers[key] = value
        elif line.startswith("? "):
            untracked.append(line[2:].encode("utf-8", "backslashreplace").decode("utf-8"))
        elif line:
            changed = True
    commit = headers.get("branch.oid")
    branch = headers.get("branch.head")
    diff = working_diff().encode("utf-8", "surrogateescape") if changed else b""
    return {
        "commit": None if commit in (None, "(initial)") else commit,
        "branch": None if branch in (None, "(detached)") else branch,
        "dirty": changed or bool(untracked),
        "diff_sha256": hashlib.sha256(diff).hexdigest() if diff else None,
        "diff_truncated": len(diff) > MAX_DIFF_BYTES,
        "untracked": untracked[:_MAX_UNTRACKED],
    }


def working_diff() -> str:
    """Return the difference between the checkout and its last commit.

    Returns:
        The patch of the tracked files, binary ones included, as ``git apply`` takes it; empty if
        there is no difference, no commit, no checkout or no git.
    """
    if not _in_checkout():
        return ""
    return _git("diff", "--binary", "--no-color", "--no-ext-diff", "HEAD") or ""


def write_working_diff(folder: Path) -> None:
    """Write `working_diff` into a run folder as ``code.diff``, or remove an older one if it is empty.

    A difference of more than a megabyte is cut, at the end of a line; ``git.diff_truncated`` in
    ``run.json`` says so.

    Args:
        folder: The run folder.

    Raises:
        OSError: If it cannot be written.
    """
    diff = working_diff().encode("utf-8", "surrogateescape")
    path = folder / DIFF_NAME
    if not diff:
        path.unlink(missing_ok=True)
        return
    if len(diff) > MAX_DIFF_BYTES:
        diff = diff[: diff.rfind(b"\n", 0, MAX_DIFF_BYTES) + 1 or MAX_DIFF_BYTES]
    write_bytes_atomic(path, diff)


def _in_checkout() -> bool:
    """Whether the package's source is part of a git checkout.

    A package installed into a virtual environment may lie inside somebody's checkout, but is
    ignored by it; that commit would say nothing about this code.
    """
    # check-ignore: 0 ignored, 1 not ignored, 128 no checkout
    return _run_git("check-ignore", "--quiet", "__init__.py")[0] == 1


def _git(*arguments: str) -> str | None:
    code, output = _run_git(*arguments)
    return output if code == 0 else None


def _run_git(*arguments: str) -> tuple[int | None, str]:
    # A hook's variables would point at another repository; optional locks would disturb a person
    # who works in the same checkout.
    hook = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY"}
    environment = {key: value for key, value in os.environ.items() if key not in hook}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    environment["LC_ALL"] = "C"
    try:
        done = subprocess.run(
            ["git", *(word for option in _GIT_OPTIONS for word in ("-c", option)), *arguments],
            cwd=Path(gda.__file__).resolve().parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None, ""
    return done.returncode, done.stdout.decode("utf-8", "surrogateescape")
