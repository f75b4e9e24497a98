import math

import pytest
import torch
from torch.nn import functional as F

from gda.distillers.dkd import DKD, dkd, dkd_parts


def test_two_classes_have_no_non_target_part(logits) -> None:
    student, teacher = logits(classes=2)
    target = torch.tensor([0, 1, 0, 1, 1, 0])
    target_part, nontarget_part = dkd_parts(student, teacher, target, 4.0)
    assert nontarget_part.item() == 0
    # With two classes the target part is all of the distillation loss.
    divergence = F.kl_div((student / 4).log_softmax(1), (teacher / 4).softmax(1), reduction="batchmean")
    assert target_part.item() == pytest.approx(16 * divergence.item(), rel=1e-12)


def test_parts_by_probabilities(logits) -> None:
    """The formula written out in probability space, which is exact for small logits."""
    student, teacher = logits(batch=1, classes=4)
    p, q = (student[0] / 2).softmax(0), (teacher[0] / 2).softmax(0)
    target_part, nontarget_part = dkd_parts(student, teacher, torch.tensor([2]), 2.0)
    tckd = q[2] * (q[2] / p[2]).log() + (1 - q[2]) * ((1 - q[2]) / (1 - p[2])).log()
    others = torch.tensor([0, 1, 3])
    p_others, q_others = p[others] / p[others].sum(), q[others] / q[others].sum()
    nckd = (q_others * (q_others / p_others).log()).sum()
    assert target_part.item() == pytest.approx(4 * tckd.item(), rel=1e-12)
    assert nontarget_part.item() == pytest.approx(4 * nckd.item(), rel=1e-12)
    total = dkd(student, teacher, torch.tensor([2]), 0.5, 3.0, 2.0)
    assert total.item() == pytest.approx(4 * (0.5 * tckd + 3 * nckd).item(), rel=1e-12)


def test_soft_targets_mean_their_most_probable_class(logits) -> None:
    student, teacher = logits(batch=2, classes=3)
    soft = torch.tensor([[0.3, 0.7, 0.0], [0.1, 0.2, 0.7]], dtype=torch.float64)
    hard = torch.tensor([1, 2])
    assert dkd(student, teacher, soft, 1, 8, 4).item() == dkd(student, teacher, hard, 1, 8, 4).item()
    assert dkd(student, teacher, soft, 1, 8, 4).item() != dkd(student, teacher, hard - 1, 1, 8, 4).item()


def test_large_spreads_in_float32_agree_with_the_limit() -> None:
    """Both sure of different classes, none of them the target: KL is the difference of log-odds."""
    student = torch.tensor([[0.0, 1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[1e4, 0.0, 0.0]])
    target_part, nontarget_part = dkd_parts(student, teacher, torch.tensor([0]), 1.0)
    # q_y = 1, p_y = exp(-1e4): the divergence is 1e4. Others: (1, 1)/2 against (1, 0) in the limit.
    assert target_part.item() == pytest.approx(1e4, rel=1e-6)
    assert nontarget_part.item() == pytest.approx(0.5 * 1e4 - math.log(2), rel=1e-6)
    (target_part + nontarget_part).backward()
    torch.testing.assert_close(student.grad, torch.tensor([[-1.0, 1.5, -0.5]]))


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="two classes"):
        dkd(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), 1, 8, 4)


def test_term_reads_targets_and_its_own_settings(logits, inputs) -> None:
    student, teacher = logits()
    target = torch.tensor([0, 1, 2, 3, 4, 0])
    value = DKD(2.0, 3.0, 5.0)(inputs(student, teacher, target))
    assert value.item() == dkd(student, teacher, target, 2.0, 3.0, 5.0).item()
