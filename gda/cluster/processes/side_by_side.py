"""Runs of frozen jobs as child processes, several at a time, each behind the runs that it needs."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from gda.cluster.failed_run import is_finished, mark_failed
from gda.cluster.frozen_job import FrozenJob, FrozenRun
from gda.cluster.processes.child_run import ChildRun, log_of
from gda.cluster.processes.display import SideBySideDisplay
from gda.cluster.processes.machine_share import shares
from gda.errors import RunInterrupted, UserError

_POLL_SECONDS = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    Attributes:
        run: The run.
        state: ``waiting`` where it was not begun because all was stopped.
        reason: Why it failed; empty otherwise.
        log: The file that has what its process printed; it may not exist.
    """

    run: FrozenRun
    state: Literal["done", "failed", "interrupted", "waiting"]
    reason: str
    log: Path


@dataclass(frozen=True)
class SideBySideEnd:
    """What became of all runs.

    Attributes:
        outcomes: In the order of the jobs.
        signal: The signal that stopped them all; None where there was none.
    """

    outcomes: tuple[Outcome, ...]
    signal: int | None

    @property
    def all_done(self) -> bool:
        """Whether every run is finished."""
        return all(outcome.state == "done" for outcome in self.outcomes)

    @property
    def exit_code(self) -> int:
        """0 when all is done, 130 after a signal, else 1."""
        if self.all_done:
            return 0
        return UserError.exit_code if self.signal is None else RunInterrupted.exit_code

    def failures(self) -> list[str]:
        """Names every run that failed, or that something else than :attr:`signal` has interrupted.

        Returns:
            Lines; runs that failed for the same reason share one.
        """
        found: dict[tuple[str, str], list[Outcome]] = {}
        for outcome in self.outcomes:
            if outcome.state == "failed" or (outcome.state == "interrupted" and self.signal is None):
                found.setdefault((outcome.state, outcome.reason), []).append(outcome)
        lines = []
        for (state, reason), outcomes in found.items():
            said = [reason.rstrip(".")] if reason else []
            logs = [outcome.log for outcome in outcomes if outcome.log.exists()]
            said += [f"output in {logs[0]}"] if logs else []
            lines.append(f"{state}: {', '.join(each.run.title for each in outcomes)} ({'; '.join(said)})")
        return lines


def run_side_by_side(jobs: Sequence[FrozenJob], at_once: int) -> SideBySideEnd:
    """Makes all runs of some jobs, at most ``at_once`` at a time.

    A run begins when the runs that it needs are done; it fails when one of them has failed. SIGINT,
    SIGTERM, SIGUSR2 and SIGHUP are passed on: what runs saves and stops, and nothing more begins. A second
    Ctrl-C kills.

    Args:
        jobs: Read from disk (:func:`gda.cluster.frozen_job.read_job`).
        at_once: At least 1.
    """
    return _SideBySide(jobs, at_once).go()


class _SideBySide:
    def __init__(self, jobs: Sequence[FrozenJob], at_once: int) -> None:
        self.waiting = {run.folder: (job, number) for job in jobs for number, run in enumerate(job.runs)}
        self.jobs = {folder: job for folder, (job, _) in self.waiting.items()}
        self.runs = {folder: job.runs[number] for folder, (job, number) in self.waiting.items()}
        at_once = max(1, min(at_once, len(self.waiting)))
        ranks = max((job.ranks for job in jobs), default=1)
        self.free = list(enumerate(shares(at_once, ranks)))[::-1]
        self.running: dict[Path, tuple[ChildRun, int]] = {}
        self.shares = shares(at_once, ranks)
        self.outcomes: dict[Path, Outcome] = {}
        self.signals: list[int] = []
        self.passed_on = 0
        self.display = SideBySideDisplay(len(self.waiting))

    def go(self) -> SideBySideEnd:
        with self._signals_noted(), self.display, self._none_left_behind():
            while self.running or (self.waiting and not self.signals):
                self._pass_signals_on()
                for folder, (child, _) in list(self.running.items()):
                    if not child.is_running:
                        self._settle(folder)
                if not self.signals:
                    self._start_what_can()
                self.display.show([child for child, _ in self.running.values()])
                if self.running:
                    time.sleep(_POLL_SECONDS)
        for folder in self.waiting:
            self._conclude(folder, "waiting")
        return SideBySideEnd(
            tuple(self.outcomes[folder] for folder in self.runs), self.signals[0] if self.signals else None
        )

    def _start_what_can(self) -> None:
        for folder, (job, number) in list(self.waiting.items()):
            run = self.runs[folder]
            missing = [need for need in run.needs if need in self.runs and not self._is_done(need)]
            ended = [need for need in missing if need in self.outcomes]
            if ended:
                del self.waiting[folder]
                reason = f"not begun: it needs {self.runs[ended[0]].title}, which is not finished"
                mark_failed(folder, UserError(reason))
                self.display.failed(run, reason)
                self._conclude(folder, "failed", reason)
            elif not missing and self.free:
                del self.waiting[folder]
                if is_finished(folder, run.needed):
                    self._conclude(folder, "done")
                    continue
                slot, share = self.free.pop()
                self.running[folder] = ChildRun(job, number, share), slot
                self.display.started(run)

    def _settle(self, folder: Path) -> None:
        child, slot = self.running.pop(folder)
        self.free.append((slot, self.shares[slot]))
        state, reason = child.end()
        if state == "done":
            self.display.done(child.run, time.monotonic() - child.started)
        elif state == "failed":
            self.display.failed(child.run, reason)
        else:
            self.display.interrupted(child.run)
        self._conclude(folder, state, reason)

    def _conclude(
        self, folder: Path, state: Literal["done", "failed", "interrupted", "waiting"], reason: str = ""
    ) -> None:
        run = self.runs[folder]
        self.outcomes[folder] = Outcome(run, state, reason, log_of(self.jobs[folder], run))

    def _is_done(self, folder: Path) -> bool:
        return folder in self.outcomes and self.outcomes[folder].state == "done"

    def _pass_signals_on(self) -> None:
        """Passes on what has come since the last time; a child that begins now has not missed it."""
        while self.passed_on < len(self.signals):
            number = self.signals[self.passed_on]
            self.passed_on += 1
            again = number == signal.SIGINT and signal.SIGINT in self.signals[: self.passed_on - 1]
            for child, _ in self.running.values():
                if again:
                    child.kill()
                else:
                    child.send(signal.SIGTERM if number == signal.SIGHUP else number)
            if self.running:
                name, by_hand = signal.Signals(number).name, number == signal.SIGINT
                self.display.stopping(name, len(self.running), again, by_hand)

    @contextmanager
    def _none_left_behind(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            for child, _ in self.running.values():
                child.send(signal.SIGTERM)  # they save, and stop
            raise

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            self.signals.append(number)

        before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number in _SIGNALS:
            # nohup has asked for SIGHUP to be ignored
            if not (number == signal.SIGHUP and before[number] == signal.SIG_IGN):
                signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
