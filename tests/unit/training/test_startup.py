"""The stopwatch of a start: it begins with the process, and its sections add up."""

import time
from pathlib import Path

import pytest

from gda.training import startup
from gda.training.startup import Startup


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(startup, "time", clock)
    return clock


def test_sections_lie_between_marks_and_the_first_begins_with_the_process(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "_age_of_process", lambda: 2.5)
    watch = Startup()
    for seconds, section in (
        (0.5, "imports"),
        (0.25, "checks"),
        (1.0, "data and models"),
        (0.5, "first step"),
    ):
        clock.now += seconds
        watch.mark(section)
    assert watch.in_words() == ("4.8 s: 3.0 s imports, 0.2 s checks, 1.0 s data and models, 0.5 s first step")


def test_a_section_counts_once_and_what_lies_between_belongs_to_none(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher that is made first has checks and data of its own."""
    monkeypatch.setattr(startup, "_age_of_process", lambda: 0.0)
    watch = Startup()
    for seconds, section in ((1.0, "imports"), (1.0, "checks"), (60.0, "checks"), (2.0, "first step")):
        clock.now += seconds
        watch.mark(section)
    assert watch.in_words() == "4.0 s: 1.0 s imports, 1.0 s checks, 2.0 s first step"
    assert not watch.is_told


def test_a_process_is_at_least_as_old_as_its_first_import() -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("the kernel does not tell")
    before = startup._age_of_process()
    assert 0 < before <= float(Path("/proc/uptime").read_text().split()[0])
    time.sleep(0.05)
    assert startup._age_of_process() > before


@pytest.mark.parametrize("content", [None, "", "1 (a b) c) S 1 2 3", "nonsense"])
def test_where_the_kernel_does_not_tell_it_begins_with_the_import(
    content: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_text(_: Path) -> str:
        if content is None:
            raise FileNotFoundError
        return content

    monkeypatch.setattr(Path, "read_text", read_text)
    assert startup._age_of_process() == 0.0
