"""JSON files that a kill may have torn: each is what it should be, or says what is wrong with it.

The status of a study has to appear within two seconds for a thousand runs, so this imports nothing.
"""

import json
from pathlib import Path
from typing import Any


class Unreadable(Exception):
    """A file is torn, not what its name promises, or of another version; the message says which."""


def read_record(path: Path) -> dict[str, Any] | None:
    """Reads a file that holds one JSON object.

    Returns:
        The object; None where there is no such file.

    Raises:
        Unreadable: The file holds anything else, or can't be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Unreadable(f"{path.name} can't be read ({error.strerror})") from None
    except (ValueError, RecursionError):  # bad UTF-8 is a ValueError too
        raise Unreadable(f"{path.name} is no valid JSON") from None
    if not isinstance(content, dict):
        raise Unreadable(f"{path.name} is no JSON object")
    return content


def read_journal(path: Path, last: int | None = None) -> list[dict[str, Any]]:
    """Reads the lines of a journal that can be read, and passes over the others.

    Args:
        path: One JSON object a line; a missing file has no lines.
        last: How many lines to read from the end; all of them when None.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is torn, or empty
    except OSError:
        return []
    rows = []
    for line in lines if last is None else lines[-last:]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def text_of(value: object) -> str | None:
    """Returns a string that is not empty, or None."""
    return value if isinstance(value, str) and value else None


def whole_of(value: object) -> int | None:
    """Returns an integer, or None (true is no number)."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
