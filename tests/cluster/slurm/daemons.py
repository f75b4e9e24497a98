"""Long-lived processes that are known by the files that name them, and are ended by those alone."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from slurm.packages import SEARCHED, Unavailable


def environment(base: Path, **more: str) -> dict[str, str]:
    """The environment of the cluster's programs: without what a SLURM job around this process set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
    path = f"{os.environ.get('PATH', '')}:{SEARCHED}"
    return {**kept, "PATH": path, "SLURM_CONF": str(base / "slurm.conf"), **more}


def start(
    base: Path, name: str, command: Sequence[str | Path], more: Mapping[str, str] | None = None
) -> None:
    """Starts a program in the background; `NAME.pid` and `NAME.log` below `base` are about it."""
    with (base / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            env=environment(base, **(more or {})),
            cwd=base,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (base / f"{name}.pid").write_text(f"{process.pid} {_born(process.pid)}\n")


def pid_of(base: Path, name: str) -> int | None:
    """Returns the id of a process that :func:`start` started, None where it is not alive."""
    try:
        pid, born = (base / f"{name}.pid").read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if _born(int(pid)) == born else None


def stop(base: Path, name: str, seconds: float = 15.0) -> None:
    """Ends such a process: SIGTERM, and SIGKILL where it does not obey."""
    pid = pid_of(base, name)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        try:
            wait_until(lambda: pid_of(base, name) is None, seconds, name)
        except Unavailable:
            os.kill(pid, signal.SIGKILL)
    (base / f"{name}.pid").unlink(missing_ok=True)


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits for something to become true.

    Raises:
        Unavailable: It did not.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Unavailable(f"waited {seconds:.0f} s for {what} in vain")
        time.sleep(0.1)


def _born(pid: int) -> str:
    """The start time of a living process: with its id it names one process for ever. Empty for none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        reaped, _ = os.waitpid(pid, os.WNOHANG)  # our own dead child would stay a zombie
    except ChildProcessError:
        reaped = 0
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if reaped or fields[0] == "Z" else fields[19]
