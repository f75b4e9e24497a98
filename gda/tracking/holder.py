"""Who holds a lock file, and whether that process still lives."""

import contextlib
import errno
import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Holder:
    """What a lock file says at one moment.

    Attributes:
        host: Host of the holding process.
        pid: Its number there.
        process_start: What tells it from a later process of that number, ``boot/namespace/start``.
        created: When it took the lock.
        token: Random; every taking of the lock has its own.
        mtime_ns: Time stamp of the lock file: the heartbeat.
    """

    host: str
    pid: int
    process_start: str
    created: str
    token: str
    mtime_ns: int = 0

    @classmethod
    def this_process(cls, token: str) -> "Holder":
        """Describes this process as a holder."""
        pid = os.getpid()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(socket.gethostname(), pid, _process_start(pid), now, token)

    @classmethod
    def read(cls, path: Path) -> "Holder | None":
        """Reads a lock file; ``None`` if there is none.

        The time stamp comes from the opened file, because NFS asks the server for fresh attributes
        on opening only.
        """
        try:
            with path.open("rb") as file:
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
        return cls(
            host=str(content.get("host", "unknown")),
            pid=pid if isinstance(pid, int) else 0,
            process_start=str(content.get("process_start", "")),
            created=str(content.get("created", "an unknown time")),
            # A damaged file still has an identity that changes when somebody replaces it.
            token=str(content.get("token", data.hex())),
            mtime_ns=mtime_ns,
        )

    def to_json(self) -> str:
        """Returns the content of a lock file."""
        return json.dumps({key: value for key, value in asdict(self).items() if key != "mtime_ns"}) + "\n"

    @property
    def description(self) -> str:
        """The holder in words."""
        return f"process {self.pid} on host {self.host} since {self.created}"

    def lives_here(self) -> bool | None:
        """Says whether the holder lives, as this host's kernel sees it; ``None`` if it cannot know."""
        if self.host != socket.gethostname() or self.pid <= 0:
            return None
        boot, namespace = [*self.process_start.split("/"), "", ""][:2]
        own_boot, own_namespace, _ = _process_start(os.getpid()).split("/")
        if boot != own_boot or namespace != own_namespace:
            # Another machine of the same name, this one before a restart, or a container of it:
            # process numbers mean nothing here.
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it exists, and is somebody else's
        return _process_start(self.pid) == self.process_start


def _process_start(pid: int) -> str:
    """Identifies a process beyond its number, which is used again: ``boot/namespace/start``.

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
