"""The run folder as processes above rank 0 see it: rank 0 alone writes, and all may fail."""

import datetime
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from gda.ranks import rank
from gda.tracking.run_folder import Row, RunFolder


class SilentRunFolder(RunFolder):
    """Reads a run folder that rank 0 writes; only a failure of this process's own is written down."""

    @contextmanager
    def owned(self, wait: bool = False, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
        """Does nothing: rank 0 holds the lock for all."""
        yield

    def begin(self, config: Mapping[str, Any], description: Mapping[str, Any], epochs: int) -> None:
        """Does nothing."""

    def restore_history(self, rows: Sequence[Row]) -> None:
        """Does nothing."""

    def append(self, row: Row, timing: Row) -> None:
        """Does nothing."""

    def saved_within(self, step: int) -> None:
        """Does nothing."""

    def finish(self, result: Row) -> None:
        """Does nothing."""

    def interrupt(self) -> None:
        """Does nothing."""

    def preempt(self) -> None:
        """Does nothing."""

    def fail(self, error: BaseException) -> None:
        """Marks the run failed and adds this process's traceback to the run's log."""
        text = "".join(traceback.format_exception(error))
        stamp = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        entry = f"{stamp} ERROR gda: process {rank()} failed:\n{text}"
        with suppress(OSError), (self.path / "run.log").open("a", encoding="utf-8") as log:
            log.write(entry)  # one write at the end of the file: lines of rank 0 stay whole
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        self._close("failed", error=f"process {rank()}: {type(error).__name__}: {first}")

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Keeps what this process says to itself: rank 0 says the same."""
        handler = logging.NullHandler()
        logging.getLogger("gda").addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger("gda").removeHandler(handler)
