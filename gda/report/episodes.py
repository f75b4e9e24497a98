"""Few-shot tests episode by episode: reading the shares, and comparing two runs on identical episodes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gda.report.fields import Unreadable
from gda.report.figures import shot_figure
from gda.report.records import EpisodeShares, Run
from gda.report.spread import t_quantile

if TYPE_CHECKING:
    import numpy as np

EPISODES = "episodes.safetensors"
"""The file of a few-shot test that holds one share for each episode and figure."""

OTHER_EPISODES = "other episodes"
SAME_FIGURE = 1e-6
"""How far a mean of shares, in percent, may lie from the figure of the run that they belong to."""


@dataclass(frozen=True)
class EpisodeMean:
    """A mean over episodes in percent, or a mean of differences in percentage points.

    Attributes:
        n: number of episodes.
        half: half the width of the 95% Student-t interval over them; None for a single episode.
    """

    n: int
    mean: float
    half: float | None

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.half is None else self.mean + self.half

    @property
    def excludes_zero(self) -> bool:
        """True when there is an interval and zero lies outside it."""
        return self.half is not None and abs(self.mean) > self.half


def read_episodes(run: Run) -> Mapping[str, EpisodeShares]:
    """Read the figures of each episode of a few-shot test.

    Args:
        run: a finished test.

    Returns:
        Name of the figure, for example ``test_1shot`` -> shares.

    Raises:
        Unreadable: the file is missing or damaged, or does not belong to the run's figures.
    """
    from safetensors import SafetensorError, safe_open

    path = run.path / EPISODES
    try:
        with safe_open(path, framework="np") as file:
            prints = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys() if shot_figure(name)}  # noqa: SIM118
    except FileNotFoundError:
        raise Unreadable(f"no {EPISODES}") from None
    except OSError as error:
        raise Unreadable(f"{EPISODES} cannot be read ({error.strerror or error})") from None
    except (SafetensorError, ValueError, TypeError, KeyError) as error:  # torn, or a type NumPy has not
        raise Unreadable(f"{EPISODES} is damaged ({error})") from None
    for name, shares in found.items():
        _require_shares(name, shares, run)
        if not prints.get(name):
            raise Unreadable(f"{EPISODES} does not say on which episodes {name} was measured")
    if run.test_figure not in found:
        raise Unreadable(f"{EPISODES} lacks {run.test_figure}")
    return {name: EpisodeShares(shares, prints[name]) for name, shares in found.items()}


def mean_over_episodes(figure: EpisodeShares) -> EpisodeMean:
    """Return the mean of a figure in percent with its interval over episodes."""
    return _mean(100.0 * figure.shares)


def paired_over_episodes(figure: EpisodeShares, baseline: EpisodeShares) -> EpisodeMean | None:
    """Compare two runs episode by episode.

    Both classify the same queries from the same shots, so what makes an episode easy or hard cancels.

    Args:
        figure: shares of the run.
        baseline: the same figure of what it is compared with.

    Returns:
        The mean difference in percentage points; None where the episodes are not identical.
    """
    if figure.fingerprint != baseline.fingerprint or len(figure.shares) != len(baseline.shares):
        return None
    return _mean(100.0 * (figure.shares - baseline.shares))


def _mean(values: np.ndarray) -> EpisodeMean:
    count, mean = len(values), float(values.mean())
    if count < 2:
        return EpisodeMean(count, mean, None)
    half = t_quantile(count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    return EpisodeMean(count, mean, half)


def _require_shares(name: str, shares: np.ndarray, run: Run) -> None:
    import numpy as np

    if shares.dtype != np.float64 or shares.ndim != 1 or not len(shares):
        raise Unreadable(f"{EPISODES} is damaged ({name} is no list of float64 numbers)")
    if not bool(((shares >= 0) & (shares <= 1)).all()):  # false for nan, too
        raise Unreadable(f"{EPISODES} is damaged ({name} has values outside 0 to 1)")
    if abs(100.0 * float(shares.mean()) - run.last.get(name, math.nan)) > SAME_FIGURE:
        raise Unreadable(f"{EPISODES} does not belong to this run: its {name} has another mean")
