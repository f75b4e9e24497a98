"""Files that are either the old ones or the new ones, never halves.

A run may be killed, or the disk may fill up, between any two system calls. Whole files are
therefore written beside their target and renamed over it; journals grow by whole lines, and a
torn last line counts as not written.
"""

import contextlib
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gda.errors import UserError


def write_bytes_atomic(path: Path | str, data: bytes) -> None:
    """Replace ``path`` by a file that holds ``data``; on failure the old file stays whole.

    Args:
        path: The file to replace; its directory must exist.
        data: The new content.

    Raises:
        OSError: If the file cannot be written (disk full, no permission). Nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    # Not tempfile.mkstemp: its mode 0600 would hide the file from the rest of the group.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)  # can fail too: network file systems report a full disk here
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a failed write does not say of which file
        raise
    _sync_directory(path.parent)


def write_text_atomic(path: Path | str, text: str) -> None:
    """Replace ``path`` by a UTF-8 file that holds ``text``; see `write_bytes_atomic`."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: Path | str, obj: Any) -> None:
    """Replace ``path`` by ``obj`` as strict, indented JSON; see `write_bytes_atomic`.

    Strict JSON has no NaN: non-finite floats become the strings ``"nan"``, ``"inf"`` and
    ``"-inf"``, which ``float()`` reads back. Paths become strings, tuples lists, and scalars with
    an ``item()`` method (NumPy, torch) plain numbers.
    """
    write_text_atomic(path, json.dumps(_plain(obj), indent=2, allow_nan=False) + "\n")


def append_line(path: Path | str, obj: Any) -> None:
    """Append ``obj`` as one line of strict JSON and wait until it is on the disk.

    A torn last line that a killed writer has left is cut off first, so that it cannot run into
    the new one. If the write fails, the file is cut back to what it was. For one writer at a time.

    Args:
        path: The journal; created if it does not exist.
        obj: What to append; converted as by `write_json_atomic`.

    Raises:
        OSError: If the line cannot be written (disk full, no permission).
    """
    line = json.dumps(_plain(obj), allow_nan=False).encode("utf-8") + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        end = _end_of_last_whole_line(descriptor)
        os.ftruncate(descriptor, end)
        os.lseek(descriptor, end, os.SEEK_SET)
        try:
            _write_all(descriptor, line)
            os.fsync(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


def read_json_lines(path: Path | str) -> list[dict[str, Any]]:
    """Read the whole lines of a journal.

    A torn last line (no newline, or not a JSON object) is ignored: its writer was killed, and
    will write it again. A file that does not exist has no lines.

    Args:
        path: The journal.

    Returns:
        One dict a line, in the order of the file.

    Raises:
        UserError: If a line before the last one is broken, which no kill can do.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = data.split(b"\n")[:-1]  # what follows the last newline is torn, or empty
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:  # also bytes that are not UTF-8
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            raise UserError(
                f"{path}, line {number}, is not a JSON object: the journal was damaged by something "
                "other than an interrupted write. Restore the file, or delete that line by hand."
            )
    return rows


def _plain(value: Any) -> Any:
    """Make ``value`` strict JSON; see `write_json_atomic`."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item"):
        return _plain(value.item())
    raise TypeError(f"cannot write a {type(value).__name__} as JSON: {value!r}")


def _write_all(descriptor: int, data: bytes) -> None:
    """Write every byte: ``os.write`` may stop early, and does so when the disk is nearly full."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _end_of_last_whole_line(descriptor: int) -> int:
    """Return the offset just after the last newline of the file, 0 if there is none."""
    end = os.fstat(descriptor).st_size
    block = 65536
    while end > 0:
        start = max(0, end - block)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _sync_directory(directory: Path) -> None:
    """Make a rename survive a power cut, where the file system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
