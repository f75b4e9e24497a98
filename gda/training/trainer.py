"""The loop. It knows epochs, steps, checkpoints and journals, and nothing of what is learned."""

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gda.config.schema import Recipe, TrainerSettings
from gda.distillers.term import Progress
from gda.seeding import stream_seed
from gda.tasks.task import StepOutput, Task
from gda.tracking.run_folder import Row, RunFolder
from gda.training import checkpoint
from gda.training.finite import FiniteGuard, require_finite_figures, require_finite_weights
from gda.training.precision import Precision
from gda.training.progress import ProgressDisplay
from gda.training.result import in_words, is_better, result_of

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
    ) -> None:
        self.task, self.recipe, self.run = task, recipe, run
        self.optimizer, self.schedule = optimizer, schedule
        self.seed, self.device, self.title = seed, device, title
        self.on_checkpoint = on_checkpoint
        self.parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        self.precision = Precision(settings.precision, device)
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
        """
        first = self._resume()
        if not self.history:
            with self.precision.autocast():
                self.history = [{"epoch": 0, **self.task.evaluate_teacher()}]
        self.run.restore_history(self.history)
        with ProgressDisplay(self.title, self.recipe.epochs, self.task.steps, first) as display:
            for epoch in range(first, self.recipe.epochs):
                self._run_epoch(epoch, display)
        return result_of(self.history, self.task.figure.name)

    def _run_epoch(self, epoch: int, display: ProgressDisplay) -> None:
        started = time.perf_counter()
        rate = self.schedule(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        figures, images = self._train_epoch(epoch, display)
        trained = time.perf_counter()
        row: Row = {"epoch": epoch + 1, "learning_rate": rate, **figures, **self._evaluate(epoch)}
        require_finite_figures(row)
        evaluated = time.perf_counter()
        self.history.append(row)
        self._save(row)
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

    def _train_epoch(self, epoch: int, display: ProgressDisplay) -> tuple[Row, int]:
        for module in self.task.modules.values():
            module.train()
        sums: dict[str, Tensor] = {}
        images = 0
        started = time.perf_counter()
        for step, batch in enumerate(self.task.batches(epoch)):
            torch.manual_seed(stream_seed(self.seed, "forward", epoch, step))  # dropout and the like
            progress = Progress(epoch, self.recipe.epochs, step, self.task.steps)
            with self.precision.autocast():
                output = self.task.training_step(batch, progress)
            self.precision.step(output, self.optimizer, self.parameters, self.recipe.gradient_clip)
            if self.average is not None:
                self.average.update_parameters(self.task.student)
            self.guard.record(epoch, step, output)
            _add(sums, output)
            images += output.images
            display.step(images / (time.perf_counter() - started))
        self.guard.look()
        require_finite_weights(self.task.modules, epoch)
        return {name: float(value) / images for name, value in sums.items()}, images

    def _evaluate(self, epoch: int) -> Row:
        progress = Progress(epoch, self.recipe.epochs, self.task.steps - 1, self.task.steps)
        with self.precision.autocast():
            row: Row = dict(self.task.evaluate(self.task.student, progress))
            if self.average is not None:
                averaged = self.task.evaluate(self.average.module, progress)
                row |= {f"ema_{name}": value for name, value in averaged.items()}
        return row

    def _save(self, row: Row) -> None:
        self.run.require_ownership()
        if is_better(row, self.best, self.task.figure.name):
            self.best = row
            best = {
                "format": 1,
                "epoch": row["epoch"],
                "metrics": row,
                "model": self.task.student.state_dict(),
            }
            if self.average is not None:
                best["model_ema"] = self.average.module.state_dict()
            checkpoint.save(self.run.path / checkpoint.BEST, best)
        checkpoint.save_last(
            self.run.path,
            {
                "format": 1,
                "epoch": row["epoch"],
                "metrics": row,
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

    def _resume(self) -> int:
        """Loads the newest good checkpoint; returns the epoch to continue with."""
        state, notes = checkpoint.load_last(self.run.path)
        for note in notes:
            logger.warning(note)
        if state is None:
            return 0
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
        logger.info("%s: continuing after epoch %d", self.title, state["epoch"])
        return int(state["epoch"])


def _average(student: nn.Module, decay: float | None) -> AveragedModel | None:
    if decay is None:
        return None
    return AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def _add(sums: dict[str, Tensor], output: StepOutput) -> None:
    """Adds a step's figures on the device, weighted by its images; nothing waits for the GPU."""
    figures = {"train_loss": output.loss.detach(), **{f"term/{name}": v for name, v in output.terms.items()}}
    for name, value in figures.items():
        weighted = value.double() * output.images
        sums[name] = sums[name] + weighted if name in sums else weighted


def _summary(row: Row, figure: str) -> str:
    shown = [("loss", row["train_loss"], "{:.3f}")]
    for split in ("validation", "test"):
        if f"{split}_{figure}" in row:
            shown.append((f"{split} {in_words(figure)}", row[f"{split}_{figure}"], "{:.2f} %"))
    return ", ".join(f"{name} {style.format(value)}" for name, value, style in shown)
