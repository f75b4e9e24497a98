"""What a few-shot evaluation reports: figures of each episode, and their mean with an interval.

The figures of an episode are made from features: shots ``(episodes, way, shot, width)``, and queries
``(episodes, way * query, width)``, class by class (see :mod:`gda.data.few_shot.episodes`). All statistics are
float64.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gda.data.few_shot.episodes import query_targets
from gda.models.zoo.similarity import cosine, find_metric


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval, in the unit of the values.

    Attributes:
        count: Number of values.
        mean: Their mean.
        half_width: Half the width of the interval; ``None`` for a single value, for unknown is not zero.
    """

    count: int
    mean: float
    half_width: float | None

    @property
    def excludes_zero(self) -> bool:
        """True when there is an interval and zero lies outside it."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def nearest_centroid_accuracy(shots: Tensor, queries: Tensor, metric: str = "cos") -> Tensor:
    """Returns the share of queries that are nearest to the mean shot of their own class.

    Chen et al., arXiv 2003.04390, eq. 1 and 2: raw features are averaged; for ``cos`` the mean and the
    queries are normalised then. A temperature above 0 would not change the figure. Of equally near
    classes the first counts.

    Args:
        shots: Features ``(episodes, way, shot, width)``.
        queries: Features ``(episodes, way * query, width)``.
        metric: ``cos`` (cosine) or ``sqr`` (squared Euclidean distance).

    Returns:
        Shares in [0, 1], ``(episodes,)``, float64.

    Raises:
        UserError: There is no such metric.
    """
    nearest = find_metric(metric)(queries, shots.mean(dim=2)).argmax(dim=2)
    return (nearest == _targets(shots, queries)).double().mean(dim=1)


def single_class_auc(shots: Tensor, queries: Tensor) -> Tensor:
    """Returns how well the cosine to class 0's mean shot tells class 0's queries from the others.

    As published with two ways: the other class's shots are not used.

    Args:
        shots: Features ``(episodes, way, shot, width)``.
        queries: Features ``(episodes, way * query, width)``.

    Returns:
        Area under the ROC curve in [0, 1] of each episode, ``(episodes,)``, float64.
    """
    scores = cosine(queries, shots[:, :1].mean(dim=2)).squeeze(2)
    query = queries.shape[1] // shots.shape[1]
    return roc_auc(scores[:, :query], scores[:, query:])


def roc_auc(positives: Tensor, negatives: Tensor) -> Tensor:
    """Returns the share of (positive, negative) pairs in which the positive scores higher.

    This is the area under the ROC curve; equal scores count one half (Mann and Whitney 1947).

    Args:
        positives: Scores ``(..., p)``.
        negatives: Scores ``(..., n)``, with the same leading dimensions.

    Returns:
        Areas in [0, 1], ``(...)``, float64.
    """
    positives, negatives = positives.unsqueeze(-1), negatives.unsqueeze(-2)
    wins = (positives > negatives).double() + 0.5 * (positives == negatives).double()
    return wins.mean(dim=(-2, -1))


def logistic_regression_accuracy(shots: Tensor, queries: Tensor) -> Tensor:
    """Returns the accuracy of a logistic regression that is fitted to the shots of each episode.

    As in Tian et al., arXiv 2003.11539: every feature vector is divided by its length, then scikit-learn's
    ``LogisticRegression`` with an L2 penalty of inverse strength ``C=1``, multinomial, solved by L-BFGS
    in at most 1,000 iterations. Episodes are fitted one after another on the CPU.

    Args:
        shots: Features ``(episodes, way, shot, width)``, two ways or more.
        queries: Features ``(episodes, way * query, width)``.

    Returns:
        Shares in [0, 1], ``(episodes,)``, float64.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import

    classes = torch.arange(shots.shape[1]).repeat_interleave(shots.shape[2]).numpy()
    targets = query_targets(1, shots.shape[1], queries.shape[1] // shots.shape[1])[0].numpy()
    known = torch.nn.functional.normalize(shots.flatten(1, 2).double(), dim=-1).cpu().numpy()
    asked = torch.nn.functional.normalize(queries.double(), dim=-1).cpu().numpy()
    probe = LogisticRegression(C=1.0, max_iter=1000)
    shares = [probe.fit(x, classes).score(y, targets) for x, y in zip(known, asked, strict=True)]
    return torch.tensor(shares, dtype=torch.float64)


def confidence_interval(values: Tensor, level: float = 0.95) -> Interval:
    """Returns the mean of independent values and the half-width of its Student-t interval.

    Args:
        values: ``(n,)``, at least one.
        level: Probability that the interval holds the true mean, in (0, 1).
    """
    values = values.detach().double().cpu()
    count, mean = len(values), float(values.mean())
    if count < 2:
        return Interval(count, mean, None)
    # The same function as scipy.stats.t.ppf, without the two seconds that importing stats takes.
    from scipy.special import stdtrit

    quantile = float(stdtrit(count - 1, 0.5 + level / 2))
    return Interval(count, mean, quantile * float(values.std()) / math.sqrt(count))


def batch_means(values: Tensor, episodes_per_batch: int = 4) -> Tensor:
    """Averages the figures of the episodes of each batch.

    The published interval is taken over these means. It estimates the same mean's error as the one over
    episodes, from fewer values.

    Args:
        values: ``(episodes,)``, the episodes of a batch side by side.
        episodes_per_batch: Episodes in a batch; 4 as published.

    Returns:
        ``(batches,)``, float64.

    Raises:
        ValueError: The last batch would not be full.
    """
    if len(values) % episodes_per_batch:
        raise ValueError(f"{len(values)} episodes are not whole batches of {episodes_per_batch}")
    return values.double().reshape(-1, episodes_per_batch).mean(dim=1)


def paired_difference(values: Tensor, baseline: Tensor, level: float = 0.95) -> Interval:
    """Compares two encoders on identical episodes, episode by episode.

    An episode that is hard for one is mostly hard for the other, so that the difference within an episode
    carries less noise than the difference of two means.

    Args:
        values: Figures of one, ``(episodes,)``.
        baseline: Figures of the other on the same episodes in the same order; samplers of equal
            :attr:`~gda.data.few_shot.episodes.EpisodeSampler.fingerprint` draw such episodes.
        level: As in :func:`confidence_interval`.

    Returns:
        Mean of ``values - baseline`` with its interval.

    Raises:
        ValueError: The numbers of episodes differ.
    """
    if values.shape != baseline.shape:
        raise ValueError(f"{len(values)} and {len(baseline)} episodes are not the same episodes")
    return confidence_interval(values.double() - baseline.double(), level)


def _targets(shots: Tensor, queries: Tensor) -> Tensor:
    episodes, way = shots.shape[:2]
    return query_targets(episodes, way, queries.shape[1] // way).to(queries.device)
