"""How figures are written for people: two digits, a sign on differences, n/a where unknown."""

from __future__ import annotations

from collections.abc import Iterable

from gda.report.aggregate import Row
from gda.report.spread import Difference, Summary

UNKNOWN = "n/a"
NOT_APPLICABLE = "–"
IMAGE_NOTE = (
    "Loss is the cross-entropy to the labels and teacher KL is KL(teacher || student), both in nats an "
    "image; ECE is the expected calibration error over 15 bins; agreement is the share of images to "
    "which student and teacher give the same class."
)


def mean_and_std(summary: Summary, runs: int | None = None) -> str:
    """Write ``93.21 ± 0.25``; the spread of a single seed is unknown, not zero.

    Args:
        summary: the figure over seeds.
        runs: number of finished runs; when fewer have the figure, its own n is added.
    """
    if summary.mean is None:
        return UNKNOWN
    spread = UNKNOWN if summary.std is None else number(summary.std)
    count = f" (n={summary.n})" if runs is not None and runs != summary.n else ""
    return f"{number(summary.mean)} ± {spread}{count}"


def mean_only(summary: Summary, digits: int) -> str:
    """Write the mean of a secondary figure."""
    return UNKNOWN if summary.mean is None else number(summary.mean, digits)


def difference(value: Difference | None) -> str:
    """Write ``+1.23 [+0.80, +1.66] (n=5)``; an interval that excludes 0 carries a dagger."""
    if value is None:
        return NOT_APPLICABLE
    if value.mean is None:
        return UNKNOWN
    return f"{with_interval(value.mean, value.low, value.high, value.excludes_zero)} (n={value.n})"


def with_interval(mean: float, low: float | None, high: float | None, excludes_zero: bool) -> str:
    """Write a difference as ``+1.23 [+0.80, +1.66]``, with a dagger where the interval excludes 0."""
    interval = f"[{UNKNOWN}]" if low is None or high is None else f"[{signed(low)}, {signed(high)}]"
    return f"{signed(mean)} {interval}{'†' if excludes_zero else ''}"


def mean_and_half(mean: float | None, half: float | None) -> str:
    """Write ``61.23 ± 0.45``, a mean with half the width of its interval."""
    if mean is None:
        return UNKNOWN
    return f"{number(mean)} ± {UNKNOWN if half is None else number(half)}"


def number(value: float, digits: int = 2) -> str:
    """Write a figure; what rounds to zero has no sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def signed(value: float) -> str:
    """Write a difference with its sign."""
    return f"{round(value, 2) + 0.0:+.2f}"


def seed_list(seeds: Iterable[int]) -> str:
    """Write ``seed 3`` or ``seeds 0, 1, 4``."""
    ordered = sorted(seeds)
    return f"seed{'s' if len(ordered) != 1 else ''} {', '.join(map(str, ordered))}"


def not_done(row: Row) -> str:
    """Count what is still to come of a row: ``1 failed, 2 missing``."""
    counts = (
        (len(row.failed), "failed"),
        (len(row.unfinished), "unfinished"),
        (len(row.planned) + len(row.absent), "missing"),
    )
    return ", ".join(f"{count} {word}" for count, word in counts if count) or NOT_APPLICABLE
