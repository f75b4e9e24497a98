"""Shows how runs side by side get on: a table of those that run on a terminal, lines in a file."""

import logging
import sys
import time
from collections.abc import Sequence
from textwrap import shorten
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from gda.cluster.frozen_job import FrozenRun
from gda.cluster.processes.child_run import ChildRun
from gda.tracking.run_folder import RunFolder
from gda.training.result import in_words

logger = logging.getLogger("gda")

_REFRESH_SECONDS = 1.0
_REASON_WIDTH = 160  # all of it comes at the end


class SideBySideDisplay:
    """The display of some runs; a context manager.

    Args:
        total: How many runs there are.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._ended = 0
        self._shown = 0.0
        console = Console()
        self._live = (
            Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None
        )

    def __enter__(self) -> "SideBySideDisplay":
        if self._live is not None:
            before = sys.stdout
            self._live.start()
            self._move_log(before, sys.stdout)  # lines then appear above the table, not in it
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            during = sys.stdout
            self._live.stop()
            self._move_log(during, sys.stdout)

    def started(self, run: FrozenRun) -> None:
        """Reports that a run begins; the table shows it by itself."""
        if self._live is None:
            logger.info(f"started: {run.title}")

    def done(self, run: FrozenRun, seconds: float) -> None:
        """Reports a finished run."""
        self._end(f"done: {run.title}{_figure(run)} in {seconds:.0f} s")

    def failed(self, run: FrozenRun, reason: str) -> None:
        """Reports a failed run."""
        self._end(f"failed: {run.title}: {shorten(reason, _REASON_WIDTH, placeholder=' ...')}")

    def interrupted(self, run: FrozenRun) -> None:
        """Reports a run that was stopped; it can be continued."""
        self._end(f"stopped: {run.title}")

    def stopping(self, name: str, count: int, kills: bool, by_hand: bool) -> None:
        """Reports that all is stopped.

        Args:
            name: Name of the signal.
            count: Runs that go on.
            kills: Whether they are killed.
            by_hand: Whether a person stops them, who may be told how to stop them faster.
        """
        runs = "1 run" if count == 1 else f"{count} runs"
        wait = f"{runs} killed" if kills else f"waiting for {runs} to save"
        logger.info(f"{name}: {wait}{'; a second Ctrl-C kills' if by_hand and not kills else ''}")

    def show(self, running: Sequence[ChildRun]) -> None:
        """Shows what runs now; cheap when called often."""
        now = time.monotonic()
        if self._live is None or now - self._shown < _REFRESH_SECONDS:
            return
        self._shown = now
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for child in running:
            status = child.status()
            epochs = (
                f"epoch {status.get('epoch', 0)}/{status['epochs']}" if "epochs" in status else "starting"
            )
            table.add_row(child.run.title, epochs, f"{now - child.started:.0f} s")
        table.add_row(f"{self._ended} of {self.total} ended, {len(running)} running", "", "")
        self._live.update(table, refresh=True)

    def _end(self, text: str) -> None:
        self._ended += 1
        logger.info(f"[{self._ended}/{self.total}] {text}")

    def _move_log(self, before: TextIO, after: TextIO) -> None:
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                handler.setStream(after)


def _figure(run: FrozenRun) -> str:
    """Returns what a finished run amounts to: ``, test top-1 67.30 %``."""
    folder = RunFolder(run.folder)
    figure = str(folder.description().get("figure"))
    value = ((folder.status().get("result") or {}).get("last") or {}).get(f"test_{figure}")
    return f", test {in_words(figure)} {value:.2f} %" if isinstance(value, float) else ""
