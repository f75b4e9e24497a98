"""How a study stands, as plain data."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from gda.cluster.state.cell_state import STATES

GOES_ON = ("running", "queued", "preempted")
"""States of runs that somebody or something works on, or comes back to."""


@dataclass(frozen=True)
class CellState:
    """How one run stands.

    Attributes:
        folder: Its run folder.
        title: What it is called.
        state: One of :data:`gda.cluster.state.cell_state.STATES`.
        detail: What is known beyond that, in a few words; may be empty.
        advice: What to do about it; empty where nothing has to be done.
        error: The line that says why it failed, or None.
        planned: Whether a plan of the study names it.
        job: Id of the SLURM job that has to make it, or None.
        log: Path of the output of that job, or of the run's part in it, or None.
        in_job_log: Whether the error stands there: the job failed before the run had begun.
        epoch: Epochs done; None when it never began.
        epochs: Length of training; None when unknown.
        step: Steps of the next epoch that are saved besides.
        updated: When its status last changed, in ISO format; None when it never began.
        attempts: How often it was begun.
        began: When its last attempt began, in ISO format, or None.
        seconds_left: Estimate of how long it still takes, once it runs; None where nothing tells.
    """

    folder: Path
    title: str
    state: str
    detail: str = ""
    advice: str = ""
    error: str | None = None
    planned: bool = True
    job: str | None = None
    log: str | None = None
    in_job_log: bool = False
    epoch: int | None = None
    epochs: int | None = None
    step: int = 0
    updated: str | None = None
    attempts: int = 0
    began: str | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class StudyState:
    """How a study stands.

    Attributes:
        folder: The study's folder.
        cells: Its runs: those that are planned, in the order of the plans, then all others.
        inputs: Unfinished runs that unfinished cells may wait for, such as teachers.
        queue_fault: Why SLURM could not be asked, in a few words; None where it answered, or had not to.
        faults: Files of the study that can't be used, and why.
        seconds_left: Estimate of how long everything takes that goes on by itself; None where that
            is nothing, or where one of the runs can't be estimated.
    """

    folder: Path
    cells: tuple[CellState, ...]
    inputs: tuple[CellState, ...] = ()
    queue_fault: str | None = None
    faults: tuple[str, ...] = ()
    seconds_left: float | None = None

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.folder.resolve().name

    @property
    def counts(self) -> dict[str, int]:
        """Number of cells by state, in the order of the states, without those that have none."""
        counted = Counter(cell.state for cell in self.cells)
        return {state: counted[state] for state in STATES if counted[state]}

    @property
    def done(self) -> bool:
        """Whether there are cells, and all are done."""
        return bool(self.cells) and all(cell.state == "done" for cell in self.cells)

    @property
    def settled(self) -> bool:
        """Whether nothing goes on: no run and no job is alive that could change a state."""
        return not any(run.state in GOES_ON for run in (*self.cells, *self.inputs))
