"""The run folder: the truth about one run, readable without any of the code that made it.

========================  ============================================================
``config.yaml``           the resolved config
``run.json``              ids, identity, provenance
``metrics.jsonl``         one line an epoch; deterministic, no timings
``timing.jsonl``          seconds and throughput of each epoch
``status.json``           running, done, failed, interrupted or preempted; the result when done
``attempts.jsonl``        a line when an attempt begins, and one when it ends; a killed one has no second,
                          one that was not let begin no first
``last.pt``, ``best.pt``  checkpoints (:mod:`gda.training.checkpoint`)
``code.diff``             what the checkout had changed against its commit
``run.log``               what was said, with tracebacks
========================  ============================================================
"""

import datetime
import json
import logging
import os
import secrets
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from gda.errors import UserError
from gda.tracking.atomic import append_line, read_json_lines, write_json_atomic, write_text_atomic
from gda.tracking.lock import FolderLock

Row = dict[str, Any]


class _LogFile(logging.FileHandler):
    """A log that falls silent when it can't be written: the run itself will say why, once."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Does nothing; logging's own way is a traceback for every line."""


class RunFolder:
    """Reads and writes one run folder.

    Args:
        path: The folder, ``RUNS/STUDY/NAME-GROUP/seedK``; made when the run begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FolderLock | None = None

    @contextmanager
    def owned(self, wait: bool = False, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
        """Holds the folder's lock within the block (see :class:`gda.tracking.lock.FolderLock`).

        Args:
            wait: Whether to wait for another process.
            on_wait: Told why it waits.

        Raises:
            FolderLocked: Another process works here, and ``wait`` is false.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with FolderLock(self.path).acquire(wait=wait, on_wait=on_wait) as lock:
            self._lock = lock
            try:
                yield
            finally:
                self._lock = None

    def require_ownership(self) -> None:
        """Stops a process whose lock was taken over because it had seemed dead.

        Raises:
            UserError: Another process works in this folder now.
        """
        if self._lock is not None and self._lock.lost:
            raise UserError(
                f"The lock of {self.path} was taken over by another process, because this one did not "
                "beat for too long (suspended, or its file system stalled). This one stops."
            )

    def __str__(self) -> str:
        """Returns the path, from the working directory where it lies below."""
        here = Path.cwd()
        return str(self.path.relative_to(here) if self.path.is_relative_to(here) else self.path)

    def status(self) -> Row:
        """Returns ``status.json``, empty when the run never began."""
        try:
            loaded = json.loads((self.path / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return loaded if isinstance(loaded, dict) else {}

    def description(self) -> Row:
        """Returns ``run.json``, empty when the run never began."""
        try:
            loaded = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return loaded if isinstance(loaded, dict) else {}

    def is_done(self) -> bool:
        """Says whether the run has finished."""
        return self.status().get("state") == "done"

    def begin(self, config: Mapping[str, Any], description: Mapping[str, Any], epochs: int) -> None:
        """Writes down what the run is, and that it is running.

        Args:
            config: The resolved config.
            description: Identity and provenance, for ``run.json``.
            epochs: Length of training.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        before = self.status()
        attempt = int(before.get("attempt", 0)) + 1
        write_text_atomic(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
        known = self.description()
        write_json_atomic(
            self.path / "run.json",
            {
                "format": 1,
                "id": known.get("id") or secrets.token_hex(8),
                "created": known.get("created") or _now(),
                **description,
            },
        )
        reached = {"epoch": before.get("epoch", 0), "step": before.get("step", 0)}
        self._write_status(state="running", **reached, epochs=epochs, attempt=attempt)
        append_line(
            self.path / "attempts.jsonl",
            {
                "attempt": attempt,
                "event": "begin",
                "time": _now(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "slurm_job": slurm_job_id(),
                "restart": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
                **reached,
            },
        )

    def history(self) -> list[Row]:
        """Returns the whole lines of ``metrics.jsonl``."""
        return read_json_lines(self.path / "metrics.jsonl")

    def restore_history(self, rows: Sequence[Row]) -> None:
        """Makes ``metrics.jsonl`` agree with the checkpoint that a run continues from.

        A kill may fall between a checkpoint and its line, or tear the line; the checkpoint holds
        every line, so the journal is written anew from it.
        """
        fresh = self.path / "metrics.jsonl.new"
        fresh.write_bytes(b"")
        for row in rows:
            append_line(fresh, row)
        fresh.replace(self.path / "metrics.jsonl")
        status = self.status()
        epoch = rows[-1]["epoch"] if rows else 0
        if status.get("epoch") != epoch:  # the checkpoint is an earlier one than the status says
            self._write_status(**{**status, "epoch": epoch, "step": 0})

    def append(self, row: Row, timing: Row) -> None:
        """Adds one epoch to the journals, after its checkpoint, and moves the status on."""
        append_line(self.path / "metrics.jsonl", row)
        append_line(self.path / "timing.jsonl", timing)
        status = self.status()
        status |= {"epoch": row["epoch"], "step": 0}
        self._write_status(**status)

    def saved_within(self, step: int) -> None:
        """Notes that a checkpoint was written in the middle of an epoch, after ``step`` of its steps."""
        self._write_status(**{**self.status(), "step": step})

    def finish(self, result: Row) -> None:
        """Marks the run done."""
        self._close("done", result=result)

    def fail(self, error: BaseException) -> None:
        """Marks the run failed, with the first line of its error; the log gets the traceback."""
        text = "".join(traceback.format_exception(error))
        logging.getLogger("gda").debug("the run failed:\n%s", text)
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        self._close("failed", error=f"{type(error).__name__}: {first}")

    def interrupt(self) -> None:
        """Marks the run interrupted; the same command continues it."""
        self._close("interrupted")

    def preempt(self) -> None:
        """Marks the run preempted by its cluster, which brings it back."""
        self._close("preempted")

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Copies everything the ``gda`` loggers say into ``run.log``, within the block."""
        handler = _LogFile(self.path / "run.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handler.setLevel(logging.DEBUG)
        logger = logging.getLogger("gda")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            handler.close()

    def _close(self, state: str, **more: Any) -> None:
        try:
            status = {**self.status(), "state": state, **more}
            self._write_status(**status)
            ended = {key: status.get(key) for key in ("attempt", "epoch", "step", "error")}
            append_line(self.path / "attempts.jsonl", {**ended, "event": state, "time": _now()})
        except OSError as error:  # a full disk must not hide the failure that it caused
            if state == "done":
                raise
            logging.getLogger("gda").error("%s could not be marked %s: %s", self.path, state, error)

    def _write_status(self, **status: Any) -> None:
        record = {"error": None, "result": None, **status, "updated": _now()}
        write_json_atomic(self.path / "status.json", record)


def slurm_job_id() -> str | None:
    """Returns the id of the SLURM job that this process is part of, ``ARRAY_TASK`` in an array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
