"""A run that learns nothing: a finished student is measured once, and the figures become a run folder."""

import time
from collections.abc import Callable
from typing import Protocol

import torch
from safetensors.torch import save

from gda.config.schema import TrainerSettings
from gda.ranks import is_main
from gda.tasks.few_shot_test import TestFigures
from gda.tasks.task import Figure
from gda.tracking.atomic import write_bytes_atomic
from gda.tracking.run_folder import Row, RunFolder
from gda.training.precision import Precision
from gda.training.result import result_of

EPISODES = "episodes.safetensors"
"""Holds the figures of each episode, for paired comparisons."""


class Measured(Protocol):
    """A task that measures.

    Attributes:
        figure: What it is judged by.
    """

    figure: Figure

    def measure(self) -> TestFigures:
        """Returns all figures."""
        ...


class Evaluation:
    """Measures a task in a run folder; the counterpart of :class:`gda.training.trainer.Trainer`.

    Args:
        task: What is measured.
        settings: Device and precision.
        run: Where everything is written.
        device: Where the task's modules live.
        on_checkpoint: Called when the figures are safe on disk.
    """

    def __init__(
        self,
        task: Measured,
        settings: TrainerSettings,
        run: RunFolder,
        device: torch.device,
        on_checkpoint: Callable[[], None] = lambda: None,
    ) -> None:
        self.task, self.run, self.on_checkpoint = task, run, on_checkpoint
        self.precision = Precision(settings.precision, device)

    def fit(self) -> Row:
        """Measures once; a run that was killed measures again.

        Returns:
            The run's result (:func:`gda.training.result.result_of`).

        Raises:
            UserError: The student's features are not finite.
        """
        started = time.perf_counter()
        self.run.restore_history([])
        with self.precision.autocast():
            found = self.task.measure()
        row: Row = {"epoch": 1, **found.figures}
        self.run.require_ownership()
        if is_main():
            content = {name: shares.contiguous() for name, shares in found.episodes.items()}
            write_bytes_atomic(self.run.path / EPISODES, save(content, found.fingerprints))
        self.run.append(row, {"epoch": 1, "evaluate_seconds": time.perf_counter() - started})
        self.on_checkpoint()
        return result_of([row], self.task.figure.name)
