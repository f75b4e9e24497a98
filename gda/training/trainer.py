"""The loop. It knows epochs, steps, checkpoints and journals, and nothing of what is learned."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gda.config.schema import Recipe, TrainerSettings
from gda.distillers.term import Progress
from gda.ranks import from_main, is_main, rank_count
from gda.tasks.task import Task
from gda.tracking.run_folder import Row, RunFolder
from gda.training import checkpoint
from gda.training.batch_statistics import average_statistics
from gda.training.epoch import EpochSums
from gda.training.finite import FiniteGuard, require_finite_figures, require_finite_weights
from gda.training.interruption import Stopped, StopRequest
from gda.training.precision import Precision
from gda.training.progress import ProgressDisplay
from gda.training.result import in_words, is_better, result_of
from gda.training.step import OptimizerStep

logger = logging.getLogger("gda.training")


class Trainer:
    """Trains a task in a run folder, from wherever an earlier attempt stopped.

    No random state is stored: every stream is derived from the seed, the epoch and the step, so a
    resumed run draws what an uninterrupted one would have drawn.

    Args:
        task: What is trained.
        recipe: Epochs and clipping.
        settings: Device, precision and averaging.
        optimizer: Optimiser over the task's modules.
        schedule: Learning rate during an epoch (counted from 0).
        run: Where everything is written.
        seed: The run's seed.
        device: Where the task's modules live.
        title: What the progress display calls the run.
        on_checkpoint: Called after each epoch is safe on disk.
        on_step: Called after each training step.
        stop: Asked after each step whether a signal has come.
    """

    def __init__(
        self,
        task: Task[Any],
        recipe: Recipe,
        settings: TrainerSettings,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        run: RunFolder,
        seed: int,
        device: torch.device,
        title: str = "training",
        on_checkpoint: Callable[[], None] = lambda: None,
        on_step: Callable[[], None] = lambda: None,
        stop: StopRequest | None = None,
    ) -> None:
        self.task, self.recipe, self.run = task, recipe, run
        self.optimizer, self.schedule = optimizer, schedule
        self.device, self.title = device, title
        self.on_checkpoint, self.on_step = on_checkpoint, on_step
        self.stop = StopRequest() if stop is None else stop
        self.precision = Precision(settings.precision, device)
        self.step = OptimizerStep(task, optimizer, self.precision, settings, recipe.gradient_clip, seed)
        self.guard = FiniteGuard(settings.finite_check_every)
        self.average = _average(task.student, settings.ema_decay)
        self.history: list[Row] = []
        self.best: Row | None = None

    def fit(self) -> Row:
        """Trains to the end of the recipe.

        Returns:
            The run's result (:func:`gda.training.result.result_of`).

        Raises:
            NonFiniteLoss: A loss became NaN or infinite; the last good checkpoint is kept.
            CheckpointError: A checkpoint could not be written; the last good one is kept.
            Stopped: A signal asked to stop; the run is saved as it stands.
        """
        first, within = self._resume()
        if not self.history:
            with self.precision.autocast():
                self.history = [{"epoch": 0, **self.task.evaluate_teacher()}]
        self.run.restore_history(self.history)
        with ProgressDisplay(self.title, self.recipe.epochs, self.task.steps, first) as display:
            for epoch in range(first, self.recipe.epochs):
                self._run_epoch(epoch, display, within if epoch == first else None)
        return result_of(self.history, self.task.figure.name)

    def _run_epoch(self, epoch: int, display: ProgressDisplay, within: Row | None = None) -> None:
        started = time.perf_counter()
        rate = self.schedule(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        figures, images = self._train_epoch(epoch, display, within or {})
        trained = time.perf_counter()
        try:
            row: Row = {"epoch": epoch + 1, "learning_rate": rate, **figures, **self._evaluate(epoch)}
        except Stopped:
            self._save({"figures": figures})
            raise
        require_finite_figures(row)
        evaluated = time.perf_counter()
        with self.stop.deferred():  # checkpoint and journal belong together
            self.history.append(row)
            self._save_best(row)
            self._save()
            speed = images / (trained - started)
            timing = {
                "epoch": epoch + 1,
                "train_seconds": trained - started,
                "evaluate_seconds": evaluated - trained,
                "save_seconds": time.perf_counter() - evaluated,
                "images_per_second": speed,
            }
            self.run.append(row, timing)
            self.on_checkpoint()
            display.epoch(epoch + 1, _summary(row, self.task.figure.name), speed)

    def _train_epoch(self, epoch: int, display: ProgressDisplay, within: Row) -> tuple[Row, int]:
        """Trains one epoch, or the rest of it.

        Returns:
            The epoch's figures, and how many images all processes have trained on just now.
        """
        if "figures" in within:  # all its steps were done before
            return within["figures"], 0
        for module in self.task.modules.values():
            module.train()
        trained = list(self._with_statistics())
        sums, start = EpochSums(), within.get("step", 0)
        if within:
            sums = EpochSums.restored(within["ranks"], trained, self.device)
        before, started = sums.images, time.perf_counter()
        with self.stop.deferred():
            for step, batch in enumerate(self.task.batches(epoch, start), start):
                progress = Progress(epoch, self.recipe.epochs, step, self.task.steps)
                for output in self.step(batch, progress):
                    self.guard.record(epoch, step, output)
                    sums.add(output)
                if self.average is not None:
                    self.average.update_parameters(self.task.student)
                images = (sums.images - before) * rank_count()
                display.step(images / (time.perf_counter() - started))
                self.on_step()
                asked = self.stop.asked()
                if asked and step + 1 < self.task.steps:
                    self._require_finite(epoch)
                    self._save({"step": step + 1, "ranks": sums.state(trained)})
                    self.stop.stop(asked)
            self._require_finite(epoch)
            average_statistics(trained)
            figures, _ = sums.means()
            if asked:
                self._save({"figures": figures})
                self.stop.stop(asked)
        return figures, images

    def _require_finite(self, epoch: int) -> None:
        """Looks before anything is saved, so that no checkpoint holds bad weights."""
        self.guard.look()
        require_finite_weights(self.task.modules, epoch)

    def _with_statistics(self) -> Iterator[nn.Module]:
        yield from self.task.modules.values()
        if self.average is not None:
            yield self.average.module

    def _evaluate(self, epoch: int) -> Row:
        progress = Progress(epoch, self.recipe.epochs, self.task.steps - 1, self.task.steps)
        with self.precision.autocast():
            row: Row = dict(self.task.evaluate(self.task.student, progress))
            if self.average is not None:
                averaged = self.task.evaluate(self.average.module, progress)
                row |= {f"ema_{name}": value for name, value in averaged.items()}
        return row

    def _save_best(self, row: Row) -> None:
        if not is_better(row, self.best, self.task.figure.name):
            return
        self.best = row
        best = {
            "format": 1,
            "epoch": row["epoch"],
            "metrics": row,
            "model": self.task.student.state_dict(),
        }
        if self.average is not None:
            best["model_ema"] = self.average.module.state_dict()
        self.run.require_ownership()
        if is_main():
            checkpoint.save(self.run.path / checkpoint.BEST, best)

    def _save(self, within: Row | None = None) -> None:
        """Saves all that continues the run.

        Args:
            within: What has been done of the epoch after those in the history: ``step`` steps with what
                each process has of its own, or all of them with their ``figures``.
        """
        self.run.require_ownership()
        if not is_main():
            return
        checkpoint.save_last(
            self.run.path,
            {
                "format": 1,
                "epoch": self.history[-1]["epoch"],
                "within": within,
                "metrics": self.history[-1],
                "history": self.history,
                "best": self.best,
                "model": self.task.student.state_dict(),
                "model_ema": None if self.average is None else self.average.module.state_dict(),
                "ema_updates": None if self.average is None else self.average.n_averaged,
                "modules": {
                    n: m.state_dict() for n, m in self.task.modules.items() if m is not self.task.student
                },
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.precision.scaler.state_dict(),
            },
        )
        if within is not None:
            self.run.saved_within(within.get("step", self.task.steps))

    def _resume(self) -> tuple[int, Row | None]:
        """Loads the newest good checkpoint.

        Returns:
            The epoch to continue with, and what has been done of it.
        """
        # One process sets damaged files aside, and all then load the same one.
        for note in from_main(lambda: checkpoint.load_last(self.run.path)[1]):
            logger.warning(note)
        state, _ = checkpoint.load_last(self.run.path)
        if state is None:
            return 0, None
        self.task.student.load_state_dict(state["model"])
        for name, module in self.task.modules.items():
            if module is not self.task.student:
                module.load_state_dict(state["modules"][name])
        if self.average is not None:
            self.average.module.load_state_dict(state["model_ema"])
            self.average.n_averaged.copy_(state["ema_updates"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.scaler.load_state_dict(state["scaler"])
        self.history, self.best = state["history"], state["best"]
        within: Row | None = state.get("within")
        begun = f", step {within.get('step', self.task.steps)} of the next" if within else ""
        logger.info("%s: continuing after epoch %d%s", self.title, state["epoch"], begun)
        return int(state["epoch"]), within


def _average(student: nn.Module, decay: float | None) -> AveragedModel | None:
    if decay is None:
        return None
    return AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def _summary(row: Row, figure: str) -> str:
    shown = [("loss", row["train_loss"], "{:.3f}")]
    for split in ("validation", "test"):
        if f"{split}_{figure}" in row:
            shown.append((f"{split} {in_words(figure)}", row[f"{split}_{figure}"], "{:.2f} %"))
    return ", ".join(f"{name} {style.format(value)}" for name, value, style in shown)
