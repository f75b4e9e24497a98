"""One process at a time in a run folder, whatever host it is on and however it ends.

The lock is a file that names its holder and is touched by a heartbeat. On the holder's own host a
waiter asks the kernel whether the holder lives. From another host it watches the file's time stamp
with its own monotonic clock, because the clocks of two hosts need not agree.
"""

import errno
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from gda.errors import UserError
from gda.tracking.guard import GuardBusy, file_guard
from gda.tracking.holder import Holder

LOCK_NAME = "run.lock"
GUARD_NAME = "run.lock.guard"

_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}

_log = logging.getLogger("gda.tracking")


class FolderLocked(UserError):
    """Another living process holds the run folder."""


class FolderLock:
    """A heartbeat lock on one run folder.

    Usable as a context manager; ``with FolderLock(folder).acquire(wait=True):`` waits for its turn.
    The object belongs to the process that acquired it: a forked child neither beats nor releases.

    Args:
        folder: The run folder; created if it does not exist.
        heartbeat_seconds: How often the holder touches the lock file.
        stale_seconds: How long the heartbeat of a process on another host must have been silent
            before its lock is taken over. Well above ``heartbeat_seconds``.
    """

    def __init__(self, folder: Path, heartbeat_seconds: float = 10, stale_seconds: float = 60) -> None:
        if stale_seconds <= heartbeat_seconds:
            raise ValueError("stale_seconds must exceed heartbeat_seconds")
        self.folder = Path(folder)
        self.path = self.folder / LOCK_NAME
        self._guard = self.folder / GUARD_NAME
        self._heartbeat_seconds = heartbeat_seconds
        self._stale_seconds = stale_seconds
        self._token: str | None = None
        self._pid = 0
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._beat_thread: threading.Thread | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock, as far as it knows."""
        return self._token is not None and self._pid == os.getpid() and not self.lost

    @property
    def lost(self) -> bool:
        """Whether another process took the lock over, because this one seemed dead."""
        return self._lost.is_set()

    def acquire(self, wait: bool = False, on_wait: Callable[[str], None] | None = None) -> "FolderLock":
        """Take the lock.

        A lock left by a dead process of this host is taken over at once. A lock of another host is
        watched until it beats (then it is held) or has been silent for ``stale_seconds`` (then it is
        taken over); without ``wait`` that can take up to ``stale_seconds``.

        Args:
            wait: Wait until the lock is free, instead of raising.
            on_wait: Called with one sentence when waiting begins, and again for each new holder.

        Returns:
            Itself, to be used in a ``with`` statement.

        Raises:
            FolderLocked: If a living process holds the lock and ``wait`` is false.
        """
        if self.held:
            raise RuntimeError(f"{self.path} is already held by this object")
        self.folder.mkdir(parents=True, exist_ok=True)
        token = secrets.token_hex(16)
        watched: Holder | None = None
        silent_since = 0.0
        announced = ""
        while True:
            holder = Holder.read(self.path)
            if holder is None:
                if self._take(token, over=None):
                    break
                continue
            now = time.monotonic()
            beats = False
            if watched is None or holder.token != watched.token:
                silent_since = now
            elif holder.mtime_ns != watched.mtime_ns:
                silent_since, beats = now, True
            watched = holder
            alive = holder.lives_here()
            if alive is None:
                dead, living = now - silent_since >= self._stale_seconds, beats
            else:
                dead, living = not alive, alive
            if dead:
                if self._take(token, over=holder):
                    _log.info("took over %s, left by %s", self.path, holder.description)
                    break
                continue
            if living and not wait:
                raise FolderLocked(self._locked_message(holder))
            if on_wait is not None and holder.token != announced:
                announced = holder.token
                on_wait(f"Waiting for {self.folder}, which is in use by {holder.description}.")
            time.sleep(min(0.5, self._heartbeat_seconds / 4))
        self._token, self._pid = token, os.getpid()
        self._stop, self._lost = threading.Event(), threading.Event()
        self._beat_thread = threading.Thread(target=self._beat, name="gda-lock-heartbeat", daemon=True)
        self._beat_thread.start()
        return self

    def release(self) -> None:
        """Give the lock back; does nothing if it is not held or was taken over."""
        if self._token is None or self._pid != os.getpid():
            return
        self._stop.set()
        if self._beat_thread is not None:
            self._beat_thread.join(timeout=5)
        token, self._token = self._token, None
        try:
            with file_guard(self._guard):
                holder = Holder.read(self.path)
                if holder is not None and holder.token == token:
                    self.path.unlink(missing_ok=True)
                else:
                    self._lost.set()
        except OSError as error:  # the work is done: a lock that stays behind is found dead
            _log.warning("could not remove %s: %s", self.path, error)

    def __enter__(self) -> "FolderLock":
        return self if self.held else self.acquire()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _take(self, token: str, over: Holder | None) -> bool:
        """Create the lock file, in place of the lock ``over`` if one is given.

        Everything that changes the lock file runs under the guard, and looks again before it acts:
        of two processes that saw the same dead holder, the second finds the first one's token.
        """
        temporary = self.folder / f"{LOCK_NAME}.{token}.tmp"
        try:
            with file_guard(self._guard):
                current = Holder.read(self.path)
                if (current.token if current else None) != (over.token if over else None):
                    return False
                if over is not None and current is not None:
                    if current.mtime_ns != over.mtime_ns:
                        return False  # it has beaten meanwhile
                    self.path.unlink(missing_ok=True)
                temporary.write_text(Holder.this_process(token).to_json(), encoding="utf-8")
                return _appear(temporary, self.path)
        except GuardBusy as error:
            raise FolderLocked(
                f"{self.folder} cannot be locked: another process has been busy doing so for a minute, "
                f"probably because it was stopped. Continue or end it ({error})."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _beat(self) -> None:
        """Touch the lock file until the lock is released or found lost."""
        token, stop, lost = self._token, self._stop, self._lost
        while not stop.wait(self._heartbeat_seconds):
            try:
                holder = Holder.read(self.path)
                if holder is None or holder.token != token:
                    lost.set()
                    _log.warning(
                        "the lock of %s was taken over by %s",
                        self.folder,
                        holder.description if holder else "someone who removed it",
                    )
                    return
                os.utime(self.path)
            except OSError as error:  # the file server hiccups: the next beat may work
                _log.debug("heartbeat of %s: %s", self.path, error)

    def _locked_message(self, holder: Holder) -> str:
        return (
            f"{self.folder} is in use by {holder.description}. Wait until it ends and give the same "
            f"command again, or stop it. If you are sure that no such process runs any more, "
            f"remove {self.path}."
        )


def _appear(whole: Path, path: Path) -> bool:
    """Give the file ``whole`` the name ``path`` too; false if another process was faster.

    A link appears whole or not at all, and only one can: also over NFS, and also where the guard
    cannot lock.
    """
    try:
        os.link(whole, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        try:
            with path.open("xb") as file:
                file.write(whole.read_bytes())
        except FileExistsError:
            return False
    return True
