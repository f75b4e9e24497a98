"""Accuracy, calibration and fidelity equal what scikit-learn, SciPy and a plain loop say."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from torch import Tensor

from gda.tasks.metrics import Metrics


def draw(images: int = 203, classes: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, generator=generator)
    targets = torch.randint(0, classes, (images,), generator=generator)
    logits[torch.arange(images), targets] += 1.5
    return logits, targets, logits + torch.randn(images, classes, generator=generator)


def figures(logits: Tensor, targets: Tensor, teacher: Tensor | None, batch: int) -> dict[str, float]:
    metrics = Metrics()
    for start in range(0, len(targets), batch):
        part = slice(start, start + batch)
        metrics.update(logits[part], targets[part], None if teacher is None else teacher[part])
    return metrics.result("x_")


def calibration_error(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Guo et al. 2017, eq. 3, as it is written: bins ((m - 1) / 15, m / 15]."""
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == targets
    total = 0.0
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            total += inside.sum() / len(targets) * abs(correct[inside].mean() - confidence[inside].mean())
    return total


def test_figures_equal_those_of_others() -> None:
    logits, targets, teacher = draw()
    found = figures(logits, targets, teacher, batch=50)
    log_p, log_q = (log_softmax(x.double().numpy(), axis=1) for x in (logits, teacher))
    labels = targets.numpy()
    expected = {
        "x_top1": 100 * accuracy_score(labels, log_p.argmax(1)),
        "x_top5": 100 * top_k_accuracy_score(labels, log_p, k=5, labels=range(12)),
        "x_loss": log_loss(labels, np.exp(log_p), labels=range(12)),
        "x_ece": calibration_error(np.exp(log_p), labels),
        "x_agreement": 100 * (log_p.argmax(1) == log_q.argmax(1)).mean(),
        "x_teacher_kl": (np.exp(log_q) * (log_q - log_p)).sum(1).mean(),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9), name
    assert 5 < expected["x_top1"] < 95
    assert 0 < expected["x_ece"] < 0.5


@pytest.mark.parametrize("batch", [1, 7, 203, 1000])
def test_the_batch_size_does_not_show(batch: int) -> None:
    one, other = (figures(*draw(), batch=size) for size in (batch, 64))
    assert one == pytest.approx(other, rel=1e-12)
    for exact in ("x_top1", "x_top5", "x_agreement"):
        assert one[exact] == other[exact]


def test_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.7, 0.3], [0.1, 0.9]]))
    found = figures(logits, torch.tensor([0, 0, 0, 1]), logits.flip(1), batch=3)
    assert found["x_top1"] == 75
    assert found["x_top5"] == 100  # of two classes
    assert found["x_loss"] == pytest.approx(-np.log([0.8, 0.4, 0.7, 0.9]).mean())
    # Four bins of one image each, but 0.8 lies on the edge of one: |1-.8| + |0-.6| + |1-.7| + |1-.9|.
    assert found["x_ece"] == pytest.approx((0.2 + 0.6 + 0.3 + 0.1) / 4)
    assert found["x_agreement"] == 0
    kl = [q * np.log(q / p) + p * np.log(p / q) for p, q in ((0.8, 0.2), (0.4, 0.6), (0.7, 0.3), (0.1, 0.9))]
    assert found["x_teacher_kl"] == pytest.approx(np.mean(kl))


def test_a_student_equal_to_its_teacher() -> None:
    logits, targets, _ = draw()
    found = figures(logits, targets, logits, batch=64)
    assert found["x_agreement"] == 100
    assert found["x_teacher_kl"] == 0


def test_without_a_teacher_there_is_no_fidelity() -> None:
    logits, targets, _ = draw()
    assert set(figures(logits, targets, None, 64)) == {"x_top1", "x_top5", "x_loss", "x_ece"}


def test_certain_and_wrong_stays_finite() -> None:
    logits = torch.tensor([[1000.0, -1000.0]] * 3)
    found = figures(logits, torch.tensor([1, 1, 1]), -logits, 3)
    assert found["x_ece"] == 1
    assert found["x_loss"] == pytest.approx(2000)
    assert found["x_teacher_kl"] == pytest.approx(2000)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_full(dtype: torch.dtype) -> None:
    logits, targets, teacher = (x.to(dtype) if x.is_floating_point() else x for x in draw(2000))
    found = figures(logits, targets, teacher, 128)
    assert found == pytest.approx(figures(logits.double(), targets, teacher.double(), 128), rel=1e-12)
