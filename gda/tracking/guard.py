"""A short critical section shared by processes: an ``flock`` with a time limit."""

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger("gda.tracking")
_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class GuardBusy(TimeoutError):
    """A `file_guard` was not free within its time limit."""


@contextlib.contextmanager
def file_guard(path: Path, timeout_seconds: float = 60.0) -> Iterator[None]:
    """Enter a short critical section that is shared by all processes that name the same file.

    It is an ``flock``: the kernel (or the file server) frees it when the process dies. The file
    stays behind, because removing it would let two processes lock two different files of one name.
    File systems that cannot lock give no protection; a warning says so.

    Args:
        path: The file to lock; created if it does not exist.
        timeout_seconds: How long to wait for another process.

    Raises:
        GuardBusy: If the guard was not free in time.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + timeout_seconds
        pause = 0.005
        while True:
            try:
                # Polled, not blocking: a stopped holder must not stop us for ever.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError) as error:
                if time.monotonic() >= deadline:
                    raise GuardBusy(f"{path} was held for {timeout_seconds:g} s") from error
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                _log.warning("%s cannot be locked (%s): do not start the same run twice", path, error)
                break
            time.sleep(pause)
            pause = min(0.1, 2 * pause)
        yield
    finally:
        os.close(descriptor)
