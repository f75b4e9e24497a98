"""Few-shot figures equal what NumPy, SciPy and scikit-learn say, episode by episode."""

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from gda.errors import UserError
from gda.tasks.episode_metrics import (
    Interval,
    batch_means,
    confidence_interval,
    logistic_regression_accuracy,
    nearest_centroid_accuracy,
    paired_difference,
    roc_auc,
    single_class_auc,
)

Features = NDArray[np.float64]


def draw(episodes: int, way: int, shot: int, query: int, width: int = 6) -> tuple[Tensor, Tensor]:
    """Features with class means that differ about as much as the images of a class do, far from zero."""
    random = np.random.default_rng(3)
    means = random.normal(size=(episodes, way, 1, width)) + 0.5
    features = means + random.normal(size=(episodes, way, shot + query, width))
    features *= random.uniform(0.2, 3.0, size=(episodes, way, shot + query, 1))  # lengths matter for the mean
    features = torch.from_numpy(features)
    return features[:, :, :shot], features[:, :, shot:].flatten(1, 2)


def normalised(values: Features) -> Features:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.mark.parametrize(("metric", "distance"), [("cos", "cosine"), ("sqr", "sqeuclidean")])
@pytest.mark.parametrize(("way", "shot"), [(5, 1), (3, 5)])
def test_nearest_centroid_accuracy_equals_scipy_distances(
    metric: str, distance: str, way: int, shot: int
) -> None:
    shots, queries = draw(20, way, shot, 7)
    found = nearest_centroid_accuracy(shots, queries, metric)
    labels = np.repeat(np.arange(way), 7)
    expected = [
        (cdist(y, x.mean(axis=1), distance).argmin(axis=1) == labels).mean()
        for x, y in zip(shots.numpy(), queries.numpy(), strict=True)
    ]
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-15)
    assert 0.3 < np.mean(expected) < 0.95


def test_raw_features_are_averaged_and_then_normalised() -> None:
    # Class 0: shots (10, 0) and (0, 1), raw mean (5, 0.5), near the first axis; the mean of the normalised
    # shots would be on the diagonal, where the query (1, 1) of class 0 would be nearest to it.
    shots = torch.tensor([[[[10.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.4, 1.0]]]])
    queries = torch.tensor([[[1.0, 1.0], [0.0, 1.0]]])
    assert nearest_centroid_accuracy(shots, queries).tolist() == [0.5]


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(UserError, match="cosine"):
        nearest_centroid_accuracy(*draw(1, 2, 1, 1), metric="cosine")


@pytest.mark.parametrize("shot", [1, 5])
def test_single_class_auc_equals_scikit_learn(shot: int) -> None:
    shots, queries = draw(30, 2, shot, 15)
    found = single_class_auc(shots, queries)
    expected = []
    for x, y in zip(shots.numpy(), queries.numpy(), strict=True):
        scores = normalised(y) @ normalised(x[0].mean(axis=0))
        expected.append(roc_auc_score([1] * 15 + [0] * 15, scores))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    assert 0.5 < np.mean(expected) < 0.95


def test_ties_count_one_half_as_in_scikit_learn() -> None:
    random = np.random.default_rng(0)
    positives, negatives = random.integers(0, 4, (40, 6)), random.integers(0, 4, (40, 9))
    found = roc_auc(torch.from_numpy(positives), torch.from_numpy(negatives))
    labels = [1] * 6 + [0] * 9
    expected = [
        roc_auc_score(labels, np.concatenate(both)) for both in zip(positives, negatives, strict=True)
    ]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-15)
    equal = torch.zeros(3)
    assert roc_auc(equal, equal).item() == 0.5


@pytest.mark.parametrize(("way", "shot"), [(5, 1), (3, 4), (2, 2)])
def test_the_probe_is_scikit_learns_logistic_regression_on_normalised_features(way: int, shot: int) -> None:
    shots, queries = draw(4, way, shot, 10)
    found = logistic_regression_accuracy(shots.float(), queries.float())
    known, asked = np.repeat(np.arange(way), shot), np.repeat(np.arange(way), 10)
    expected = []
    for x, y in zip(shots.numpy(), queries.numpy(), strict=True):
        x = normalised(x.reshape(way * shot, -1))
        probe = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000, solver="newton-cg").fit(x, known)
        expected.append((probe.predict(normalised(y)) == asked).mean())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-15)
    assert 0.3 < np.mean(expected) < 1.0


@pytest.mark.parametrize(("count", "level"), [(2, 0.95), (3, 0.9), (800, 0.95)])
def test_intervals_equal_those_of_scipy(count: int, level: float) -> None:
    values = np.random.default_rng(count).uniform(size=count)
    found = confidence_interval(torch.from_numpy(values), level)
    low, high = scipy.stats.t.interval(level, count - 1, values.mean(), scipy.stats.sem(values))
    assert found.half_width is not None
    assert (found.count, found.mean) == (count, pytest.approx(values.mean(), rel=1e-12))
    assert found.mean - found.half_width == pytest.approx(low, rel=1e-9)
    assert found.mean + found.half_width == pytest.approx(high, rel=1e-9)


def test_statistics_of_float32_figures_are_float64() -> None:
    values = torch.full((200_001,), 0.1)
    values[0] = 0.3
    expected = values.double().numpy()
    found = confidence_interval(values)
    assert found.mean == pytest.approx(expected.mean(), rel=1e-13)
    assert found.half_width == pytest.approx(
        scipy.stats.sem(expected) * scipy.stats.t.ppf(0.975, 200_000), rel=1e-9
    )


def test_one_value_has_no_interval() -> None:
    only = confidence_interval(torch.tensor([0.25]))
    assert only == Interval(1, 0.25, None)
    assert not only.excludes_zero


def test_batch_means_are_those_of_neighbours() -> None:
    values = torch.rand(12, generator=torch.Generator().manual_seed(0))
    expected = values.double().numpy().reshape(3, 4).mean(axis=1)
    np.testing.assert_allclose(batch_means(values).numpy(), expected, atol=1e-15)
    assert len(batch_means(values, 3)) == 4
    with pytest.raises(ValueError, match="10 episodes are not whole batches of 4"):
        batch_means(values[:10])


def test_a_paired_difference_sees_what_means_hide() -> None:
    random = np.random.default_rng(1)
    baseline = random.uniform(0.2, 0.9, size=100)
    values = baseline + random.normal(0.01, 0.02, size=100)
    found = paired_difference(torch.from_numpy(values), torch.from_numpy(baseline))
    test = scipy.stats.ttest_rel(values, baseline).confidence_interval(0.95)
    assert found.half_width is not None
    assert found.mean - found.half_width == pytest.approx(test.low, rel=1e-9)
    assert found.mean + found.half_width == pytest.approx(test.high, rel=1e-9)
    assert found.excludes_zero
    unpaired = confidence_interval(torch.from_numpy(values)).half_width
    assert unpaired is not None
    assert unpaired > 5 * found.half_width
    with pytest.raises(ValueError, match="100 and 99 episodes"):
        paired_difference(torch.from_numpy(values), torch.from_numpy(baseline[1:]))


def test_no_difference_does_not_exclude_zero() -> None:
    values = torch.rand(8, generator=torch.Generator().manual_seed(2))
    assert paired_difference(values, values) == Interval(8, 0.0, 0.0)
    assert not paired_difference(values, values).excludes_zero
