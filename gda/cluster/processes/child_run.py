"""One run as a process of its own, or as several under torchrun, beside others."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from gda.cluster.failed_run import is_finished, mark_failed
from gda.cluster.frozen_job import FrozenJob, FrozenRun
from gda.cluster.processes.machine_share import MachineShare
from gda.cluster.processes.tree import PARENT_VARIABLE, children_of, descendants_of
from gda.errors import RunInterrupted, RunPreempted, UserError
from gda.tracking.run_folder import RunFolder

State = Literal["done", "failed", "interrupted"]

_STOPPED_CODES = {
    RunInterrupted.exit_code,
    RunPreempted.exit_code,
    *(-number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)),  # before it could save
}


class ChildRun:
    """A run that goes on in a process of its own.

    Args:
        job: The frozen job that it is part of.
        number: Its number there, from 0.
        share: What of the machine it gets.
    """

    def __init__(self, job: FrozenJob, number: int, share: MachineShare) -> None:
        self.run: FrozenRun = job.runs[number]
        self.log = log_of(job, self.run)
        self.ranks = job.ranks
        self.started = time.monotonic()
        self._was_told = False
        self._before = RunFolder(self.run.folder).status()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                _command(job, number),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(self.run.config, share, job.ranks),
                start_new_session=True,  # Ctrl-C reaches it through its parent alone, and only once
            )

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def status(self) -> dict[str, Any]:
        """Returns the run's ``status.json``, as far as it is of this attempt."""
        status = RunFolder(self.run.folder).status()
        return status if status != self._before else {}

    def send(self, number: int) -> None:
        """Passes a signal on to the processes that train; torchrun itself would not wait for them."""
        self._was_told = True
        trainers = children_of(self._process.pid) if self.ranks > 1 else []
        for pid in trainers or [self._process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Ends it at once, with all that it has started."""
        for pid in [*descendants_of(self._process.pid), self._process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def end(self) -> tuple[State, str]:
        """Says how it has ended, and why; a failure that it could not write down itself is written down."""
        code = self._process.wait()
        if is_finished(self.run.folder, self.run.needed):
            return "done", ""
        said = self.status()
        if code != 0 and said.get("state") == "failed":
            return "failed", str(said.get("error") or "see its log")
        stopped = said.get("state") in ("interrupted", "preempted") or (self._was_told and code > 0)
        if code in _STOPPED_CODES or (code != 0 and stopped):
            return "interrupted", ""
        reason = self._reason(code)
        mark_failed(self.run.folder, UserError(reason), self._before)
        return "failed", reason

    def _reason(self, code: int) -> str:
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (where nobody did that, memory ran out)" if -code == signal.SIGKILL else ""
            return f"its process was ended by {name}{hint}"
        if self.ranks > 1:  # torchrun closes with a table of its own
            return "one of its processes ended without a word (killed, or out of memory)"
        return last_line(self.log) or f"its process ended with exit code {code}"


def log_of(job: FrozenJob, run: FrozenRun) -> Path:
    """Returns the file that gets what a run's process prints."""
    return job.sweep_folder / "logs" / f"{run.folder.parent.name}_{run.folder.name}.log"


def last_line(path: Path) -> str:
    """Returns the last line of a file that is not empty; nothing where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _command(job: FrozenJob, number: int) -> list[str]:
    what = ["-m", "gda.job", str(job.file), "--only", str(number)]
    if job.ranks == 1:
        return [sys.executable, *what]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(job.ranks)]
    return [sys.executable, *torchrun, *what]


def _environment(config: Mapping[str, Any], share: MachineShare, ranks: int) -> dict[str, str]:
    environment = dict(os.environ)
    # What this process could import, and nothing that happens to lie in the working directory.
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    environment["PYTHONSAFEPATH"] = "1"
    if config["trainer"]["threads"] is None:
        environment.setdefault("OMP_NUM_THREADS", str(share.threads))
    if share.gpus is not None and config["trainer"]["device"] in ("auto", "cuda"):
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)
    if ranks == 1:
        environment[PARENT_VARIABLE] = str(os.getpid())
    return environment
