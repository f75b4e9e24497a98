"""Shows how a run is getting on: a bar with ETA and throughput, or a line now and then."""

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

logger = logging.getLogger("gda.training")

_LINE_SECONDS = 20.0  # between two lines where no bar can be drawn


class ProgressDisplay:
    """The display of one run; a context manager.

    On a terminal it is one bar over all steps. In a file or a pipe it is a line every 20 seconds;
    every epoch is in the run's log either way.

    Args:
        title: What runs, e.g. ``kd+gda seed 0``.
        epochs: Length of training.
        steps: Steps in an epoch.
        first_epoch: Epochs that were done before, by an earlier attempt.
    """

    def __init__(self, title: str, epochs: int, steps: int, first_epoch: int = 0) -> None:
        self.title, self.epochs, self.steps = title, epochs, steps
        self._done_before = first_epoch
        self._bar: Progress | None = None
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metric]}"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(
                title, total=epochs * steps, completed=first_epoch * steps, speed="", metric=""
            )
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> "ProgressDisplay":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, images_per_second: float) -> None:
        """Moves the bar by one training step."""
        if self._bar is not None:
            self._bar.update(self._task, advance=1, speed=f"{images_per_second:,.0f} images/s")

    def epoch(self, epoch: int, summary: str, images_per_second: float) -> None:
        """Reports a finished epoch.

        Args:
            epoch: Epochs done so far.
            summary: The epoch's main figures.
            images_per_second: Throughput of its training steps.
        """
        if self._bar is not None:
            self._bar.update(self._task, metric=summary)
        now = time.monotonic()
        remaining = (now - self._started) / max(epoch - self._done_before, 1) * (self.epochs - epoch)
        line = f"{self.title}: epoch {epoch}/{self.epochs}, {summary}, {images_per_second:,.0f} images/s"
        if self._bar is None and now - self._last_line > _LINE_SECONDS and epoch < self.epochs:
            self._last_line = now
            logger.info("%s, %.0f s left", line, remaining)
        else:
            logger.debug("%s", line)
