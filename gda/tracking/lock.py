"""One process at a time in a run folder, whatever host it is on and however it ends.

The lock is a file that names its holder and is touched by a heartbeat. On the holder's own host a
waiter asks the kernel whether the holder lives. From another host it watches the file's time stamp
with its own monotonic clock, because the clocks of two hosts need not agree.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from gda.errors import UserError

LOCK_NAME = "run.lock"
GUARD_NAME = "run.lock.guard"

_log = logging.getLogger("gda.tracking")
_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class FolderLocked(UserError):
    """Another living process holds the run folder."""


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


@dataclass(frozen=True)
class _Holder:
    """What the lock file said at one moment."""

    host: str
    pid: int
    process_start: str
    created: str
    token: str
    mtime_ns: int

    @property
    def description(self) -> str:
        return f"process {self.pid} on host {self.host} since {self.created}"


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
        watched: _Holder | None = None
        silent_since = 0.0
        announced = ""
        while True:
            holder = self._read()
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
            alive = _lives_here(holder)
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
                holder = self._read()
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

    def _take(self, token: str, over: _Holder | None) -> bool:
        """Create the lock file, in place of the lock ``over`` if one is given.

        Everything that changes the lock file runs under the guard, and looks again before it acts:
        of two processes that saw the same dead holder, the second finds the first one's token.
        """
        me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_start": _process_start(os.getpid()),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "token": token,
        }
        temporary = self.folder / f"{LOCK_NAME}.{token}.tmp"
        try:
            with file_guard(self._guard):
                current = self._read()
                if (current.token if current else None) != (over.token if over else None):
                    return False
                if over is not None and current is not None:
                    if current.mtime_ns != over.mtime_ns:
                        return False  # it has beaten meanwhile
                    self.path.unlink(missing_ok=True)
                temporary.write_text(json.dumps(me) + "\n", encoding="utf-8")
                # A link appears whole or not at all, and only one can: also over NFS, and also
                # where the guard cannot lock.
                try:
                    os.link(temporary, self.path)
                except FileExistsError:
                    return False
                except OSError as error:
                    if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
                        raise
                    # A file system without hard links.
                    try:
                        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                    except FileExistsError:
                        return False
                    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                        file.write(json.dumps(me) + "\n")
                return True
        except GuardBusy as error:
            raise FolderLocked(
                f"{self.folder} cannot be locked: another process has been busy doing so for a minute, "
                f"probably because it was stopped. Continue or end it ({error})."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _read(self) -> _Holder | None:
        """Read the lock file; ``None`` if there is none.

        The time stamp comes from the opened file, because NFS asks the server for fresh attributes
        on opening only.
        """
        try:
            with self.path.open("rb") as file:
                mtime_ns = os.fstat(file.fileno()).st_mtime_ns
                data = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ESTALE:  # removed on the server while being read
                return None
            raise
        try:
            content: Any = json.loads(data)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            content = {}
        pid = content.get("pid")
        return _Holder(
            host=str(content.get("host", "unknown")),
            pid=pid if isinstance(pid, int) else 0,
            process_start=str(content.get("process_start", "")),
            created=str(content.get("created", "an unknown time")),
            # A damaged file still has an identity that changes when somebody replaces it.
            token=str(content.get("token", data.hex())),
            mtime_ns=mtime_ns,
        )

    def _beat(self) -> None:
        """Touch the lock file until the lock is released or found lost."""
        token, stop, lost = self._token, self._stop, self._lost
        while not stop.wait(self._heartbeat_seconds):
            try:
                holder = self._read()
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

    def _locked_message(self, holder: _Holder) -> str:
        return (
            f"{self.folder} is in use by {holder.description}. Wait until it ends and give the same "
            f"command again, or stop it. If you are sure that no such process runs any more, "
            f"remove {self.path}."
        )


def _lives_here(holder: _Holder) -> bool | None:
    """Whether the holder lives, as this host's kernel sees it; ``None`` if it cannot know."""
    if holder.host != socket.gethostname() or holder.pid <= 0:
        return None
    boot, namespace = [*holder.process_start.split("/"), "", ""][:2]
    own_boot, own_namespace, _ = _process_start(os.getpid()).split("/")
    if boot != own_boot or namespace != own_namespace:
        # Another machine of the same name, this one before a restart, or a container of it: process
        # numbers mean nothing here.
        return None
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it exists, and is somebody else's
    return _process_start(holder.pid) == holder.process_start


def _process_start(pid: int) -> str:
    """Identify a process beyond its number, which is used again: ``boot/namespace/start``.

    Parts that the system does not tell are empty. A zombie counts as ended.
    """
    boot = namespace = start = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    try:
        # The command name, in parentheses, may hold spaces and parentheses itself.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        start = "ended" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    return f"{boot}/{namespace}/{start}"
