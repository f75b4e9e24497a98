"""Checkpoints that survive kill -9, a full disk and a flipped bit.

``last.pt`` holds everything that continues a run, ``previous.pt`` the state one checkpoint earlier,
``best.pt`` the student at its best validation epoch. Each is written to a temporary file and moved
into place, so that a reader sees a whole file or none.
"""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from gda.errors import UserError
from gda.tracking.atomic import write_bytes_atomic

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"


class CheckpointError(UserError):
    """A checkpoint that can't be written or read."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint atomically.

    Args:
        path: Where it belongs.
        state: Tensors and plain data only, so that it loads without running code.

    Raises:
        CheckpointError: The disk is full or not writable; what was there before is untouched.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        write_bytes_atomic(path, buffer.getvalue())
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint {path} could not be written ({error.strerror or error}). The last good one is "
            "kept: make room on that disk, then issue the same command again and the run continues from it."
        ) from error


def save_last(folder: Path, state: dict[str, Any]) -> None:
    """Writes ``last.pt`` and keeps the one before as ``previous.pt``."""
    last, previous = folder / LAST, folder / PREVIOUS
    if last.exists():
        spare = folder / f".{PREVIOUS}.link"
        spare.unlink(missing_ok=True)
        os.link(last, spare)  # last.pt stays in place while it is also becoming previous.pt
        spare.replace(previous)
    save(last, state)


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint, verifying the CRC of every record.

    Raises:
        CheckpointError: The file is truncated, damaged or no checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"The checkpoint {path} is damaged (record {damaged} fails its checksum).")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise many kinds for damaged bytes
        raise CheckpointError(f"The checkpoint {path} is truncated or damaged ({error}).") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"The file {path} is not a checkpoint of a run.")
    return state


def load_last(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Reads the newest good checkpoint of a run.

    Returns:
        The state, or null to start from the beginning; and what to tell the user about damaged files.
        A damaged file is set aside as ``*.damaged``, never deleted.
    """
    notes: list[str] = []
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            return load(path), notes
        except CheckpointError as error:
            aside = _unused(path.with_suffix(".pt.damaged"))
            path.replace(aside)
            notes.append(
                f"{error} It was set aside as {aside.name}; falling back to what was saved before it."
            )
    if notes:
        notes.append("No good checkpoint is left: this run starts again from its first epoch.")
    return None, notes


def _unused(path: Path) -> Path:
    """Returns the path, with a number where an earlier file has it."""
    number = 1
    unused = path
    while unused.exists():
        number += 1
        unused = path.with_name(f"{path.name}.{number}")
    return unused
