"""Values of JSON files that a kill may have torn: each is what it should be, or is absent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gda.report.records import finite


class Unreadable(Exception):
    """A file is missing, torn, or not what its name promises; the message says which."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        Unreadable: there is no such file, or it holds anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unreadable(f"no {path.name}") from None
    except OSError as error:
        raise Unreadable(f"{path.name} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):  # bad UTF-8 is a ValueError too
        raise Unreadable(f"{path.name} is not valid JSON") from None
    if not isinstance(content, dict):
        raise Unreadable(f"{path.name} is not a JSON object")
    return content


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a row by name."""
    return {str(key): number for key, value in row.items() if (number := finite(value)) is not None}


def mapping(value: object) -> Mapping[str, Any]:
    """Return a JSON object, or an empty one."""
    return value if isinstance(value, Mapping) else {}


def text(value: object) -> str | None:
    """Return a string that is not empty, or None."""
    return value if isinstance(value, str) and value else None


def whole(value: object) -> int | None:
    """Return an integer, or None (true is no number)."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def first_line(value: object) -> str | None:
    """Return the first line that is not blank, or None."""
    return next((line.strip() for line in str(value).splitlines() if line.strip()), None) if value else None
