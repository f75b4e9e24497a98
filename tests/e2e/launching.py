"""Runs `launch.py` in processes of their own, which can be killed, stopped at a gate, and told to die.

Importing torch takes seconds, so that the processes are forked by a server that has done it.
"""

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch.py"
PATIENCE = 120.0  # a limit for a hanging test, not a claim about speed


@dataclass(frozen=True)
class Hook:
    """Something that happens to a child at a point of its run.

    Attributes:
        point: `before NAME` or `after NAME`, where NAME is a file that the run writes: `best.pt`,
            `last.pt`, `metrics.jsonl`, `timing.jsonl`; `torn NAME` dies in the middle of a line.
        count: At which writing of it, from 1.
        gate: The child waits until this file is there; without one it is killed by SIGKILL.
        folder: Only run folders whose path holds this count.
    """

    point: str
    count: int = 1
    gate: Path | None = None
    folder: str = ""


@dataclass
class Child:
    """A process that runs `launch.py`."""

    process: ForkServerProcess
    log: Path
    killed: bool = field(default=False)

    def wait(self) -> int:
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"the child did not end:\n{self.output}")
        return self.process.exitcode

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def until(self, text: str) -> None:
        until(lambda: text in self.output or self.process.exitcode is not None)
        assert text in self.output, self.output


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def run_child(arguments: list[str], folder: str, log: str, hook: Hook | None, path: list[str]) -> None:
    """The child itself: as if `python launch.py ARGUMENTS` had been typed in `folder`."""
    os.chdir(folder)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(descriptor), "w", buffering=1) for _ in range(2))
    sys.path[:0] = path
    sys.argv = [str(LAUNCH), *arguments]
    if hook is not None:
        _install(hook)
    runpy.run_path(str(LAUNCH), run_name="__main__")


def python(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Runs a Python of its own, from the beginning, in a folder."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def _install(hook: Hook) -> None:
    from gda.tracking import run_folder
    from gda.training import checkpoint

    when, _, name = hook.point.partition(" ")
    seen = 0

    def happen() -> None:
        if hook.gate is None:
            os.kill(os.getpid(), signal.SIGKILL)
        while hook.gate is not None and not hook.gate.exists():
            time.sleep(0.01)

    def around(write: Callable[..., None]) -> Callable[..., None]:
        def wrapped(path: Path, content: Any) -> None:
            nonlocal seen
            meant = Path(path).name == name and hook.folder in str(path)
            seen += meant
            if not meant or seen != hook.count:
                write(path, content)
                return
            if when == "torn":
                with Path(path).open("a") as file:
                    file.write('{"epoch": ')
            if when == "after":
                write(path, content)
            happen()
            if when == "before":
                write(path, content)

        return wrapped

    checkpoint.save = around(checkpoint.save)
    run_folder.append_line = around(run_folder.append_line)
