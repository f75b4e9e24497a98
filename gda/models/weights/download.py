"""Fetches files of weights by their address, once.

They are kept where torch keeps what it fetches, in ``$TORCH_HOME/hub/checkpoints/gda`` (``TORCH_HOME``
is ``~/.cache/torch`` where it is not set), under a name that begins with a hash of the address. Remove
a file there to have it fetched again. A ``file://`` address is the file itself; nothing is copied.
"""

import hashlib
import logging
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import Request, url2pathname, urlopen

import torch

from gda.errors import UserError
from gda.models.weights.file_hash import file_hash, require_hash, verified_hash

logger = logging.getLogger(__name__)

TIMEOUT = 30.0
"""Seconds without an answer after which a server is given up."""

PROGRESS_EVERY = 10.0
"""Seconds between two lines on how far a download is."""

_SCHEMES = ("http", "https", "file")
_CHUNK = 2**20


def cache_folder() -> Path:
    """Returns the folder of everything that was fetched; it may not exist yet."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "gda"


def is_url(text: str) -> bool:
    """Says whether a text is an address that :func:`fetch` takes: ``http``, ``https`` or ``file``."""
    scheme, separator, _ = text.partition("://")
    return bool(separator) and scheme.lower() in _SCHEMES


def cached_file(url: str, sha256: str | None = None) -> Path | None:
    """Returns the file that an address stands for, where it need not be fetched.

    Args:
        url: The address.
        sha256: What the hash of a file that was fetched before must be, else it must be fetched once more;
            ``None`` to take any.
    """
    local = _local_path(url)
    if local is not None:
        return local if local.is_file() else None
    path = _cache_path(url)
    known = path.is_file() and (sha256 is None or file_hash(path) == sha256.lower())
    return path if known else None


def fetch(url: str, sha256: str | None = None) -> Path:
    """Returns the file behind an address, after fetching it if need be.

    The file appears in the cache whole or not at all, so several processes may fetch it at once.

    Args:
        url: An address of scheme ``http``, ``https`` or ``file``.
        sha256: What the file's hash must be, also of one that was fetched before: if it is another, the
            file is fetched once more.

    Raises:
        UserError: The server can't be reached, does not have it, breaks off, or answers with a web page;
            the file can't be kept; or its hash is another.
    """
    if sha256 is not None:
        require_hash(sha256)
    local = _local_path(url)
    if local is not None:
        if not local.is_file():
            raise UserError(f"There is no file {local} ({url}).")
        verified_hash(local, sha256, str(local))
        return local
    target = _cache_path(url)
    if cached_file(url, sha256) is not None:
        return target
    if target.is_file():
        logger.info("What was fetched to %s before has another SHA-256; fetching it again", target)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file:
            for chunk in _chunks(url):
                file.write(chunk)
        _refuse_web_page(url, partial)
        verified_hash(partial, sha256, _shown(url))
        partial.replace(target)
    except OSError as error:
        raise UserError(
            f"{_shown(url)} can't be kept in {target.parent}: {error.strerror or error}."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return target


def _chunks(url: str) -> Iterator[bytes]:
    """Yields what a server sends.

    Raises:
        UserError: It sends nothing, or not everything.
    """
    began = told = time.monotonic()
    got = 0
    try:
        request = Request(url, headers={"User-Agent": "gda"})  # some servers refuse urllib's own
        with urlopen(request, timeout=TIMEOUT) as response:
            size = _size(response.headers.get("Content-Length"))
            logger.info("Fetching %s (%s)", _shown(url), _megabytes(size))
            while chunk := response.read(_CHUNK):
                got += len(chunk)
                yield chunk
                if time.monotonic() - told > PROGRESS_EVERY:
                    told = time.monotonic()
                    logger.info("Fetched %s of %s", _megabytes(got), _megabytes(size))
    except HTTPError as error:
        reason = str(error.reason).partition("\n")[0]  # urllib explains a loop of redirections in three lines
        answer = f"the server answers {error.code} {reason}"
        raise UserError(f"{_shown(url)} can't be fetched: {answer}.") from error
    except (HTTPException, OSError, ValueError) as error:  # URLError and time-outs are OSErrors
        raise UserError(f"{_shown(url)} can't be fetched: {_reason(error)}.") from error
    if size is not None and got != size:
        raise UserError(
            f"{_shown(url)} can't be fetched: the connection broke off after {got} of {size} bytes."
        )
    logger.info("Fetched %s in %.0f s", _megabytes(got), time.monotonic() - began)


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT:.0f} s"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause) or type(cause).__name__


def _refuse_web_page(url: str, path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        advice = "name the address that its download button leads to"
        if "/blob/" in url:
            advice = f"try {_shown(url).replace('/blob/', '/raw/', 1)}"
        raise UserError(f"{_shown(url)} is a web page, not a file of weights; {advice}.")


def _cache_path(url: str) -> Path:
    name = re.sub(r"[^\w.-]+", "_", unquote(urlsplit(url).path).rpartition("/")[2], flags=re.ASCII)
    return cache_folder() / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name[-80:] or 'weights'}"


def _local_path(url: str) -> Path | None:
    """Returns the path of a ``file`` address; ``None`` for others."""
    parts = _split(url)
    if parts.scheme != "file":
        return None
    if parts.netloc not in ("", "localhost"):
        raise UserError(f"{url} is on another machine; write file:///path/to/file for a file on this one.")
    return Path(url2pathname(parts.path))


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UserError(f"{url} is no address: {error}.") from error
    if parts.scheme not in _SCHEMES:
        raise UserError(f"{url} is no address of scheme {', '.join(_SCHEMES)}.")
    return parts


def _shown(url: str) -> str:
    """Returns an address without what may be secret in it: user, password and query."""
    parts = _split(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _size(header: str | None) -> int | None:
    return int(header) if header is not None and header.isascii() and header.isdigit() else None


def _megabytes(size: int | None) -> str:
    return "of unknown size" if size is None else f"{size / 1e6:.1f} MB"
