"""What a run folder says of its run, whatever a kill has left of it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from gda.cluster.json_record import Unreadable, read_journal, read_record, text_of, whole_of
from gda.tracking.holder import Holder
from gda.tracking.lock import LOCK_NAME

STATES = ("running", "done", "failed", "interrupted", "preempted")
"""What ``status.json`` may say."""

SILENT_SECONDS = 90.0
"""A process that beats every 10 s and was last seen so long ago is taken for dead. The clocks of two
hosts differ by some seconds, and a network file system shows a time stamp late."""


@dataclass(frozen=True)
class Attempt:
    """How the last attempt at a run began, and how it ended.

    Attributes:
        began: When, in ISO format; empty where that is not known.
        slurm_job: Id of the SLURM job that it began in, or None.
        epoch: Epochs done before it began.
        end: ``done``, ``failed``, ``interrupted`` or ``preempted``; None while it goes on, and for
            ever when it was killed.
    """

    began: str = ""
    slurm_job: str | None = None
    epoch: int = 0
    end: str | None = None


@dataclass(frozen=True)
class RunEvidence:
    """What a run folder says.

    Attributes:
        folder: The run folder; it need not exist.
        state: One of :data:`STATES`; None when the run never began, or its status can't be read.
        epoch: Epochs done.
        epochs: Length of training.
        step: Steps of the next epoch that the checkpoint holds besides.
        error: First line of the error that ended it.
        updated: When its status last changed, in ISO format.
        attempts: How often it was begun.
        fault: What is wrong with its status; None where nothing is.
        attempt: Its last attempt; None where no record of attempts is there.
        holder: Who holds its lock; None when nobody does.
        beats: Whether the holder lives, as far as can be seen from here.
        silent_seconds: Time since the last sign of life; None where there never was one.
    """

    folder: Path
    state: str | None = None
    epoch: int | None = None
    epochs: int | None = None
    step: int = 0
    error: str | None = None
    updated: str = ""
    attempts: int = 0
    fault: str | None = None
    attempt: Attempt | None = None
    holder: Holder | None = field(default=None, repr=False)
    beats: bool = False
    silent_seconds: float | None = None

    @property
    def goes_on(self) -> bool:
        """Whether a living process makes the run now.

        A process that has just failed, or saves before it is preempted, still holds the lock for a while.
        """
        if not self.beats or self.holder is None:
            return False
        taken, said = moment(self.holder.created), moment(self.updated)
        return self.state in (None, "running") or taken is None or said is None or taken > said

    @property
    def progress(self) -> str:
        """How far it came, in words: ``epoch 3/30``, or ``epoch 3/30, step 12`` of the next epoch."""
        if self.epoch is None:
            return "an unknown epoch"
        step = f", step {self.step}" if self.step else ""
        return f"epoch {self.epoch}/{self.epochs}{step}" if self.epochs else f"epoch {self.epoch}{step}"


def read_evidence(folder: Path) -> RunEvidence:
    """Reads what a run folder says; of a finished run no more than that it is.

    Args:
        folder: The run folder, ``RUNS/STUDY/NAME-GROUP/seedK``.
    """
    evidence = _evidence(folder)
    # The status was read before the lock: a run that ended in between would look as if it had died.
    return _evidence(folder) if evidence.state == "running" and not evidence.beats else evidence


def age_of(text: str) -> float | None:
    """Returns how many seconds ago an ISO time was, at least 0; None where it is none."""
    then = moment(text)
    return None if then is None else max(time.time() - then, 0.0)


def moment(text: str) -> float | None:
    """Returns an ISO time in seconds since 1970; None where it is none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _evidence(folder: Path) -> RunEvidence:
    status, fault = _status(folder)
    state = status.get("state") if isinstance(status.get("state"), str) else None
    if status and state not in STATES:
        fault = f"status.json has the unknown state {status.get('state')!r}, of another version"
        state = None
    facts: dict[str, Any] = {
        "state": state,
        "epoch": whole_of(status.get("epoch")),
        "epochs": whole_of(status.get("epochs")),
        "step": whole_of(status.get("step")) or 0,
        "error": _first_line(status.get("error")),
        "updated": text_of(status.get("updated")) or "",
        "attempts": whole_of(status.get("attempt")) or 0,
        "fault": fault,
    }
    if state == "done":
        return RunEvidence(folder, **facts)
    holder = _holder(folder)
    attempt = _last_attempt(folder)
    if state == "running" and attempt is not None:  # until it has read its checkpoint, its status says 0
        facts["epoch"] = facts["epoch"] or attempt.epoch
    silent = max(time.time() - holder.mtime_ns / 1e9, 0.0) if holder else age_of(facts["updated"])
    return RunEvidence(
        folder,
        **facts,
        attempt=attempt,
        holder=holder,
        beats=holder is not None and _beats(holder, silent),
        silent_seconds=silent,
    )


def _status(folder: Path) -> tuple[Mapping[str, Any], str | None]:
    try:
        status = read_record(folder / "status.json") or {}
    except Unreadable as reason:
        return {}, str(reason)
    version = status.get("format", 1)
    if version != 1:
        return {}, f"status.json has format {version!r}; this version reads 1"
    return status, None


def _holder(folder: Path) -> Holder | None:
    try:
        return Holder.read(folder / LOCK_NAME)
    except OSError:
        return None


def _beats(holder: Holder, silent: float | None) -> bool:
    lives = holder.lives_here()
    return lives if lives is not None else silent is not None and silent < SILENT_SECONDS


def _last_attempt(folder: Path) -> Attempt | None:
    rows = read_journal(folder / "attempts.jsonl", last=40)
    begin = next((at for at in reversed(range(len(rows))) if rows[at].get("event") == "begin"), None)
    if begin is None:
        return None
    job, later = rows[begin].get("slurm_job"), rows[begin + 1 :]
    return Attempt(
        began=text_of(rows[begin].get("time")) or "",
        slurm_job=None if job in (None, "") else str(job),
        epoch=whole_of(rows[begin].get("epoch")) or 0,
        end=text_of(later[-1].get("event")) if later else None,
    )


def _first_line(error: object) -> str | None:
    lines = error.splitlines() if isinstance(error, str) else []
    return next((line.strip() for line in lines if line.strip()), None)
