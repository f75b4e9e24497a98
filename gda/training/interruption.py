"""Signals that end a run so that it can be continued.

Ctrl-C, SIGTERM (a cluster preempts or cancels a job) and SIGUSR2 (a cluster's time limit comes near) all
mean the same: save, and stop. While steps are trained a signal is only noted, and the loop stops at the
end of its step; of several processes all stop at the same one. At any other time a signal stops at once:
what is done then is made again. Of several processes one that stopped on its own would leave the others
waiting for it: with them all signals are noted, and obeyed after the next step.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from gda.ranks import max_over_ranks

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
_IMPATIENT_SECONDS = 1.0  # torchrun passes on the Ctrl-C that its processes have had already
_left = 0  # a signal that came when a run was nearly done, and that the next run of this process obeys


class Stopped(KeyboardInterrupt):
    """A signal ended the run; a kind of Ctrl-C, so that no handler of errors takes it for one.

    Attributes:
        signal: Its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class StopRequest:
    """Whether a signal has asked this run to stop."""

    def __init__(self, number: int = 0) -> None:
        self._signal = number
        self._deferred = False
        self._stopping = False
        self._first = 0.0

    @property
    def noted(self) -> int:
        """The signal that came to this process; 0 where none has."""
        return self._signal

    @property
    def left(self) -> int:
        """The signal that came and stopped nothing; 0 where there is none."""
        return 0 if self._stopping else self._signal

    def stop(self, number: int) -> NoReturn:
        """Stops the run for a signal that was noted.

        Raises:
            Stopped: Always.
        """
        self._stopping = True
        raise Stopped(number)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block a signal is only noted; a second Ctrl-C stops at once all the same."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def asked(self) -> int:
        """Returns the signal that came to any of the run's processes; 0 where none has.

        Every process must call it at the same point, and gets the same answer.
        """
        return max_over_ranks(self._signal)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Takes a signal (see :func:`signal.signal`).

        Raises:
            Stopped: Nothing keeps the run from stopping here.
        """
        now = time.monotonic()
        again = self._signal == number == signal.SIGINT and now - self._first > _IMPATIENT_SECONDS
        if not self._signal:
            self._signal, self._first = number, now
        if again or not (self._deferred or self._stopping):
            self._stopping = True  # what follows is saved in peace, whatever else a cluster sends
            raise Stopped(number)


@contextmanager
def interruptible() -> Iterator[StopRequest]:
    """Takes the signals that end a run, within the block.

    Outside of the main thread they are somebody else's, and the request stays empty. A signal that came too
    late to stop a run stops the next one in its block.
    """
    global _left
    request, _left = StopRequest(_left), 0
    before = {}
    try:
        for number in _SIGNALS:
            before[number] = signal.signal(number, request.handle)
    except ValueError:  # not the main thread
        before = {}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _left = request.left
