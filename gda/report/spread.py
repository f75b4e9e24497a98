"""Mean, spread and paired difference over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Mean and unbiased standard deviation over seeds, in the unit of the values.

    ``mean`` is None without a value, ``std`` with fewer than two: unknown is not zero.
    """

    n: int
    mean: float | None
    std: float | None


@dataclass(frozen=True)
class Difference:
    """Paired differences to a baseline over the seeds both have, in the unit of the values.

    Attributes:
        by_seed: seed -> difference.
        mean: mean difference; None without a pair.
        low: lower end of the 95% Student-t interval; None with fewer than two pairs.
        high: upper end of it.
    """

    by_seed: Mapping[int, float]
    mean: float | None
    low: float | None
    high: float | None

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.by_seed)

    @property
    def excludes_zero(self) -> bool:
        """True when there is an interval and zero lies outside it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def summarise(values: Mapping[int, float]) -> Summary:
    """Summarise one figure over seeds.

    Args:
        values: seed -> figure.
    """
    figures = list(values.values())
    return Summary(
        n=len(figures),
        mean=fmean(figures) if figures else None,
        std=stdev(figures) if len(figures) > 1 else None,
    )


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Compare two methods seed by seed.

    Runs of equal seed share initial weights, data order and augmentation, so the difference
    within a seed carries far less noise than the difference of two means.

    Args:
        values: seed -> figure of the method.
        baseline: seed -> figure of what it is compared with.
    """
    by_seed = {seed: values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())}
    summary = summarise(by_seed)
    if summary.mean is None or summary.std is None:
        return Difference(by_seed, summary.mean, None, None)
    half = t_quantile(summary.n - 1) * summary.std / math.sqrt(summary.n)
    return Difference(by_seed, summary.mean, summary.mean - half, summary.mean + half)


def t_quantile(degrees: int) -> float:
    """Two-sided 95% quantile of Student's t: 12.7062 for 1 degree of freedom, 2.7764 for 4."""
    # The same function as scipy.stats.t.ppf, without the two seconds that importing stats takes.
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + CONFIDENCE / 2))
