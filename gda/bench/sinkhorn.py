"""The Sinkhorn term of this package against its published formulation: time, memory, agreement.

Both get the same random logits, a teacher's and a student's near it. What is measured is forward
and backward of the term alone, logits to gradient of the student's logits.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from gda.bench.published_sinkhorn import published_sinkhorn
from gda.bench.timing import Stopwatch, Times
from gda.distillers.sinkhorn import sinkhorn
from gda.seeding import generator

SIZES = ((64, 100), (128, 100), (256, 100), (1024, 100), (1024, 1000))
"""Batch and classes."""

Term = Callable[[Tensor, Tensor], Tensor]
"""Student's and teacher's logits to a scalar."""

VARIANTS: dict[str, Term] = {"gda": sinkhorn, "published": published_sinkhorn}

NOTES = (
    "ms: forward + backward of the term, the two variants by turns; min / median over the repeats.",
    "peak: most bytes that torch's allocator held at one time during forward + backward, beyond those "
    "held before (so without the logits; with the gradient of the student's logits).",
    "saved: bytes of the distinct storages that autograd keeps from forward to backward, without the logits.",
    "deviation: of the value (relative) and of the gradient (largest entry of the difference over the "
    "largest entry) from the published formulation in float64. The L1 cost has a kink where a student's "
    "and a teacher's probability are equal: rounding may move such a pair across it.",
)


@dataclass(frozen=True)
class Measured:
    """What one variant needed at one size.

    Attributes:
        times: Milliseconds of forward and backward.
        peak: Peak of memory beyond what was held before, in bytes.
        saved: Bytes kept for the backward pass.
        value_deviation: Relative deviation of the value from the published one in float64.
        gradient_deviation: Largest deviation of the gradient from it, over its largest entry.
    """

    times: Times
    peak: int
    saved: int
    value_deviation: float
    gradient_deviation: float


@dataclass(frozen=True)
class Comparison:
    """Both variants at one size.

    Attributes:
        batch: Images.
        classes: Classes.
        variants: What each of `VARIANTS` needed.
    """

    batch: int
    classes: int
    variants: dict[str, Measured]

    @property
    def ratio(self) -> float:
        """How many times faster than the published formulation, by the medians."""
        return self.variants["published"].times.median / self.variants["gda"].times.median


def compare(batch: int, classes: int, repeats: int, device: torch.device) -> Comparison:
    """Measure both variants at one size.

    Args:
        batch: Images.
        classes: Classes.
        repeats: Timed turns, after one that warms up.
        device: Where to run.
    """
    draws = generator(0, "bench", "sinkhorn", batch, classes)
    teacher = 3 * torch.randn(batch, classes, generator=draws)
    student = (teacher + torch.randn(batch, classes, generator=draws)).to(device).requires_grad_()
    teacher = teacher.to(device)

    exact = published_sinkhorn, student.detach().double().requires_grad_(), teacher.double()
    expected = _value_and_gradient(*exact)
    watch = Stopwatch(device)
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for turn in range(1 + repeats):
        for name, term in VARIANTS.items():
            watch.start()
            _value_and_gradient(term, student, teacher)
            watch.lap(name)
            if turn:
                times[name].append(watch.read()[name])
    measured = {}
    for name, term in VARIANTS.items():
        deviations = [
            float((found - true).abs().max() / true.abs().max())
            for found, true in zip(_value_and_gradient(term, student, teacher), expected, strict=True)
        ]
        peak = peak_bytes(partial(_value_and_gradient, term, student, teacher), device)
        saved = saved_bytes(partial(term, student, teacher), (student, teacher))
        measured[name] = Measured(Times(times[name]), peak, saved, *deviations)
    return Comparison(batch, classes, measured)


def _value_and_gradient(term: Term, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    value = term(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Return the most memory that ``work`` held at one time, beyond what was held before.

    Counted are allocations by torch, on the CPU as its profiler records them, on CUDA as its
    allocator counts them.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes lines of its own
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    # One event for each allocation (positive) and release (negative).
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def saved_bytes(forward: Callable[[], Tensor], inputs: tuple[Tensor, ...]) -> int:
    """Return the bytes that autograd keeps after ``forward`` until backward.

    Args:
        forward: The forward pass.
        inputs: Tensors that are there anyway and do not count.
    """
    given = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    with _kept() as storages:
        result = forward()  # its graph keeps the storages alive, so that no address is used twice
        kept = {pointer: size for pointer, size in storages.items() if pointer not in given}
        del result
    return sum(kept.values())


@contextmanager
def _kept() -> Iterator[dict[int, int]]:
    """Collects the sizes of the storages that are saved for backward within the block, by address."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


def sinkhorn_table(comparisons: list[Comparison], title: str) -> Table:
    """Lay out the comparisons, one line a size."""
    table = Table(title=title, title_justify="left")
    for heading in (
        "B, C",
        "ms gda\nmin / median",
        "ms published\nmin / median",
        "ratio\n(median)",
        "peak, MiB\ngda / published",
        "saved, MiB\ngda / published",
        "value deviation\ngda / published",
        "gradient deviation\ngda / published",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in comparisons:
        ours, published = each.variants["gda"], each.variants["published"]
        table.add_row(
            f"{each.batch}, {each.classes}",
            *(f"{m.times.minimum:.2f} / {m.times.median:.2f}" for m in (ours, published)),
            f"{each.ratio:.2f}x",
            f"{ours.peak / 2**20:.2f} / {published.peak / 2**20:.2f}",
            f"{ours.saved / 2**20:.2f} / {published.saved / 2**20:.2f}",
            f"{ours.value_deviation:.0e} / {published.value_deviation:.0e}",
            f"{ours.gradient_deviation:.0e} / {published.gradient_deviation:.0e}",
        )
    return table
