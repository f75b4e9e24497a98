"""Which file it is: the SHA-256 of its bytes."""

import hashlib
import re
from pathlib import Path

from gda.errors import UserError


def file_hash(path: str | Path) -> str:
    """Returns the SHA-256 of a file as 64 lower-case hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_hash(text: str) -> None:
    """Checks that a text is a SHA-256.

    Raises:
        UserError: It is not 64 hexadecimal digits.
    """
    if re.fullmatch(r"[0-9a-fA-F]{64}", text) is None:
        raise UserError(f"{text!r} is no SHA-256, which has 64 hexadecimal digits (sha256sum prints it).")


def verified_hash(path: Path, expected: str | None, source: str) -> str:
    """Returns a file's hash after comparing it.

    Args:
        path: The file.
        expected: What it must be, in lower or upper case; ``None`` to take any.
        source: Where the file comes from, for the message.

    Raises:
        UserError: It is another, or what is expected is no SHA-256.
    """
    if expected is not None:
        require_hash(expected)
    found = file_hash(path)
    if expected is not None and found != expected.lower():
        raise UserError(
            f"{source} is not the file that was asked for: its SHA-256 is {found}, not {expected}."
        )
    return found
