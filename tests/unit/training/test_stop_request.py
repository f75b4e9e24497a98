"""Signals that end a run: noted while steps are trained, obeyed at once at other times."""

import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from gda.training import interruption
from gda.training.interruption import Stopped, StopRequest, interruptible

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Clock:
    """Stands in for the time that passes between two signals."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(interruption, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """No test leaves a handler behind, or a signal."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with interruptible() as request:
        assert request.asked() == 0


def note(number: int) -> None:
    """Sends a signal that must stop nothing; otherwise it would stop the whole session of tests."""
    try:
        signal.raise_signal(number)
    except Stopped:
        pytest.fail("it stops at once")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_at_once_and_says_which(number: signal.Signals) -> None:
    with interruptible(), pytest.raises(Stopped, match=number.name) as stopped:
        signal.raise_signal(number)
    assert stopped.value.signal == number
    assert isinstance(stopped.value, KeyboardInterrupt), "no handler of errors may take it for one"


@pytest.mark.parametrize("number", SIGNALS)
def test_within_a_step_it_is_noted(number: signal.Signals) -> None:
    with interruptible() as request:
        assert request.asked() == 0
        with request.deferred():
            note(number)
        assert request.asked() == number
        with pytest.raises(Stopped) as stopped:
            request.stop(request.asked())
    assert stopped.value.signal == number


def test_the_first_signal_counts(clock: Clock) -> None:
    with interruptible() as request:
        with request.deferred():
            for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
                clock.now += 5
                note(number)
        assert request.asked() == signal.SIGUSR2
        with pytest.raises(Stopped):
            request.stop(request.asked())


def test_a_second_ctrl_c_does_not_wait_for_the_step(clock: Clock) -> None:
    with interruptible() as request, request.deferred():
        note(signal.SIGINT)
        clock.now += 0.5  # torchrun passes on what the terminal has sent already
        note(signal.SIGINT)
        clock.now += 1.0
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)


def test_a_cluster_may_ask_as_often_as_it_likes(clock: Clock) -> None:
    with interruptible() as request:
        with request.deferred():
            for _ in range(3):
                clock.now += 20
                note(signal.SIGTERM)
        with pytest.raises(Stopped):
            request.stop(request.asked())


def test_what_is_saved_after_the_signal_is_saved_in_peace(clock: Clock) -> None:
    with interruptible() as request:
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
        clock.now += 30
        note(signal.SIGTERM)
        note(signal.SIGUSR2)
    with interruptible() as request:
        with request.deferred():
            note(signal.SIGTERM)
        with pytest.raises(Stopped):
            request.stop(signal.SIGTERM)
        note(signal.SIGTERM)


def test_blocks_may_lie_within_each_other() -> None:
    """Of several processes that train, all is deferred: what stops at once would leave the others waiting."""
    with interruptible() as request:
        with request.deferred():
            with request.deferred():
                pass
            note(signal.SIGTERM)
        with pytest.raises(Stopped):
            request.stop(request.asked())


def test_the_handlers_of_before_come_back() -> None:
    taken: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        taken.append(number)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(Stopped), interruptible():
            signal.raise_signal(signal.SIGTERM)
        note(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert taken == [signal.SIGTERM]


def test_a_signal_that_came_too_late_stops_the_next_run() -> None:
    """Such as one during the last checkpoint of a teacher, or of a cell of a sweep."""
    with interruptible() as request, request.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
    with interruptible() as following:
        assert following.asked() == signal.SIGTERM
        with pytest.raises(Stopped):
            following.stop(following.asked())
    with interruptible() as third:
        assert third.asked() == 0


def test_outside_of_the_main_thread_signals_are_somebody_elses() -> None:
    found: list[object] = []

    def elsewhere() -> None:
        before = [signal.getsignal(number) for number in SIGNALS]
        with interruptible() as request:
            found.append(request.asked())
            found.append([signal.getsignal(number) for number in SIGNALS] == before)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [0, True]


def test_a_request_that_no_signal_reaches_never_asks() -> None:
    request = StopRequest()
    with request.deferred():
        assert request.asked() == 0
