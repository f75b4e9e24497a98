"""Clocks that tell the truth on CPU and CUDA, and the machine they ran on."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from gda.tracking.provenance import collect_provenance


@dataclass(frozen=True)
class Times:
    """Milliseconds of one thing that was measured several times."""

    each: Sequence[float]

    @property
    def minimum(self) -> float:
        """The least disturbed measurement."""
        return min(self.each)

    @property
    def median(self) -> float:
        """The usual measurement."""
        return median(self.each)


class Stopwatch:
    """Divides a stretch of work into laps.

    On CUDA the laps end at events in the stream, so that nothing waits and the laps add up to what
    the stream needed; on the CPU at readings of the clock.

    Args:
        device: Where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._names: list[str] = []
        self._marks: list[float | torch.cuda.Event] = []

    def start(self) -> None:
        """Begin a new stretch, when all earlier work is done."""
        synchronise(self.device)
        self._names, self._marks = [], [self._mark()]

    def lap(self, name: str) -> None:
        """End the part that ``name`` says; the next one begins."""
        self._names.append(name)
        self._marks.append(self._mark())

    def read(self) -> dict[str, float]:
        """Wait for the work; returns the milliseconds of each part, repeated names added up."""
        synchronise(self.device)
        times: dict[str, float] = {}
        for name, begin, end in zip(self._names, self._marks, self._marks[1:], strict=False):
            times[name] = times.get(name, 0.0) + _between(begin, end)
        return times

    def _mark(self) -> "float | torch.cuda.Event":
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> str:
    """Say in one line what the figures were measured on."""
    found = collect_provenance()
    place = f"{found['cpu']['model']}, {torch.get_num_threads()} of {found['cpu']['usable']} CPU threads"
    if device.type == "cuda":
        place = f"{torch.cuda.get_device_name(device)}, {place}"
    return f"{place}, torch {torch.__version__}"


def _between(begin: "float | torch.cuda.Event", end: "float | torch.cuda.Event") -> float:
    if isinstance(begin, float) and isinstance(end, float):
        return 1000 * (end - begin)
    assert isinstance(begin, torch.cuda.Event)
    assert isinstance(end, torch.cuda.Event)
    return float(begin.elapsed_time(end))
