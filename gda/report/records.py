"""What the report knows of a study: methods, runs, planned cells and faults, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Figures = Mapping[str, float]
"""One row of metrics by name; only finite numbers are kept (accuracies in percent, 0-100)."""

TOP1 = "top1"
"""The figure of runs that name none: classification."""

TOP1_TEXT = "top-1 accuracy"
FEW_SHOT_TEST = "few_shot_test"
"""The task that measures a finished run, and trains nothing."""

RunKey = tuple[str, int]
"""Group and seed, which together name a run."""

MINIMUM_SEEDS = 3
"""Below this many seeds a mean is not a result: seed noise is about as large as most gains."""


@dataclass(frozen=True)
class Method:
    """What was run, seed aside: everything that runs of one group have in common.

    Attributes:
        group: hash of all that changes the result, without the seed.
        label: short name, for example ``kd+gda``.
        twin_group: group of the same config with ``alignment=none``; None when this is it.
        vanilla_group: group of plain training of the same student; None when unknown.
    """

    group: str
    label: str
    distiller: str
    alignment: str
    ground_truth: str
    dataset: str
    recipe: str
    task: str
    teacher: str | None
    student: str
    pair: str
    twin_group: str | None
    vanilla_group: str | None

    @property
    def is_vanilla(self) -> bool:
        """True for plain training, which is its own baseline."""
        return self.group == self.vanilla_group

    @property
    def short_group(self) -> str:
        """The first characters of the group hash, enough to find the folder by."""
        return self.group[:8]


@dataclass(frozen=True)
class EpisodeShares:
    """One figure of a few-shot test, episode by episode.

    Attributes:
        shares: in [0, 1], shape (episodes,), float64, in the order of the episodes.
        fingerprint: names the episodes; equal fingerprints mean identical episodes.
    """

    shares: np.ndarray
    fingerprint: str


@dataclass(frozen=True)
class Run:
    """One run folder: a method, a seed, how far it came and what it measured.

    Attributes:
        folder: path below the study folder, with forward slashes.
        path: where the folder lies.
        figure: what the run is judged by, as it follows ``test_`` in a row: ``top1``, ``1shot``.
        figure_text: the same in words, for example ``top-1 accuracy``.
        state: running, done, failed, interrupted or preempted; "unknown" without a readable status.json.
        epoch: last finished epoch; None when unknown.
        epochs: planned number of epochs; None when unknown.
        updated: ISO time of the last sign of life; empty when unknown.
        error: first line of the error of a failed run.
        last: figures of the last epoch; empty unless the run wrote a result.
        best: figures of the epoch with the best validation figure; None without validation.
        oracle: highest test figure over the epochs, percent: selected on test, never a result.
        curve: epoch -> figures. Epoch 0, before training, may hold the teacher's.
        selection: "validation" or "none": what `best` was chosen on.
        teacher_seed: seed of the teacher run that was distilled from, when it was a run.
        teacher_identity: identity of the weights that fidelity was measured against.
        encoder_run: the run whose encoder the student started from or, for a test, the run that was
            tested; None when it was none of ours.
        episodes: figures of each episode by name, for example ``test_1shot``; of tests only.
        tested: for a test, the run that was tested, where it lies in the same study.
    """

    method: Method
    seed: int
    folder: str
    path: Path
    created: str
    figure: str
    figure_text: str
    state: str
    epoch: int | None
    epochs: int | None
    updated: str
    error: str | None
    last: Figures
    best: Figures | None
    oracle: float | None
    oracle_epoch: int | None
    curve: Mapping[int, Figures]
    selection: str
    teacher_seed: int | None
    teacher_identity: str | None
    encoder_run: RunKey | None
    commit: str | None
    uncommitted: bool
    torch_version: str | None
    episodes: Mapping[str, EpisodeShares] = field(default_factory=dict, compare=False)
    tested: Run | None = None

    @property
    def finished(self) -> bool:
        """True when the run is done and has its test figure; only these enter a mean."""
        return self.state == "done" and self.test_figure in self.last

    @property
    def test_figure(self) -> str:
        """Name of the figure that the run is judged by, as in its rows: ``test_top1``."""
        return f"test_{self.figure}"

    @property
    def is_test(self) -> bool:
        """True for a run that measures another one and trains nothing."""
        return self.method.task == FEW_SHOT_TEST

    @property
    def trained(self) -> Run | None:
        """The run that was trained: this one or, for a test, the tested one; None when that is unknown."""
        return self.tested if self.is_test else self

    @property
    def progress(self) -> str:
        """How far an unfinished run came, in words."""
        if self.state == "done":
            return "done, but without a test figure"
        reached = "?" if self.epoch is None else str(self.epoch)
        planned = "?" if self.epochs is None else str(self.epochs)
        heard = f", last heard {self.updated}" if self.updated else ""
        return f"{self.state} at epoch {reached}/{planned}{heard}"


@dataclass(frozen=True)
class Cell:
    """One run that a sweep intended."""

    method: Method
    seed: int
    folder: str


@dataclass(frozen=True)
class Fault:
    """A file that could not be used, and why; the rest of the study is reported without it."""

    folder: str
    reason: str

    def __str__(self) -> str:
        return f"{self.folder}: {self.reason}"


@dataclass(frozen=True)
class Study:
    """All that was found in one study folder."""

    name: str
    folder: Path
    runs: tuple[Run, ...] = ()
    cells: tuple[Cell, ...] = ()
    faults: tuple[Fault, ...] = field(default=())

    @property
    def finished(self) -> int:
        """Number of runs with a result."""
        return sum(run.finished for run in self.runs)


def finite(value: object) -> float | None:
    """Return a JSON value as a float when it is a finite number, else None (true is no number)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # JSON knows integers of any length
        return None
    return number if math.isfinite(number) else None
