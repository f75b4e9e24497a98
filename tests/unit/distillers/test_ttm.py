import math

import numpy as np
import pytest
import torch

from gda.distillers.kd import kd
from gda.distillers.ttm import TTM, WTTM, ttm, wttm

BOTH = pytest.mark.parametrize("loss", [ttm, wttm])


def by_hand(student, teacher, exponent, weighted):
    """The formula in probability space, class by class."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p, q = np.exp(s) / np.exp(s).sum(), np.exp(t) / np.exp(t).sum()
        power_sum = sum(x**exponent for x in q)
        divergence = sum(
            x**exponent / power_sum * math.log(x**exponent / power_sum / y) for x, y in zip(q, p, strict=True)
        )
        total += divergence * (power_sum if weighted else 1)
    return total / len(student)


def slopes(function, student, step=1e-5):
    """Central differences."""
    gradient = np.zeros_like(student)
    for place in np.ndindex(student.shape):
        up, down = student.copy(), student.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (function(up) - function(down)) / (2 * step)
    return gradient


@BOTH
@pytest.mark.parametrize("exponent", [0.1, 0.2, 1.0])
def test_value_and_gradient_by_hand(loss, exponent: float, logits) -> None:
    student, teacher = logits()
    value = loss(student, teacher, exponent)
    (gradient,) = torch.autograd.grad(value, student)
    s, t = student.detach().numpy(), teacher.numpy()
    assert value.item() == pytest.approx(by_hand(s, t, exponent, loss is wttm), rel=1e-12)
    expected = slopes(lambda x: by_hand(x, t, exponent, loss is wttm), s)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-6, atol=1e-8)


@BOTH
def test_gradient_agrees_with_finite_differences(loss, logits) -> None:
    student, teacher = logits(batch=4, seed=1)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, 0.3), (student,))


@BOTH
def test_no_gradient_reaches_the_teacher(loss, logits) -> None:
    student, teacher = logits()
    teacher.requires_grad_()
    loss(student, teacher, 0.1).backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


@BOTH
def test_is_zero_with_zero_gradient_where_the_student_is_the_softened_teacher(loss, logits) -> None:
    _, teacher = logits()
    student = (0.1 * teacher + torch.arange(6).unsqueeze(1)).requires_grad_()
    value = loss(student, teacher, 0.1)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-14)
    assert student.grad.abs().max() < 1e-15
    assert loss(teacher, teacher, 0.1).item() > 0.1  # not where it is the teacher itself


@BOTH
def test_exponent_one_is_kd_without_temperature(loss, logits) -> None:
    student, teacher = logits()
    assert loss(student, teacher, 1.0).item() == pytest.approx(kd(student, teacher, 1.0).item(), rel=1e-12)


def test_weighted_counts_a_smooth_sample_more_than_a_sure_one() -> None:
    student = torch.zeros(2, 4, dtype=torch.float64)
    smooth, sure = torch.tensor([[0.1, 0.0, 0.0, 0.0]]), torch.tensor([[40.0, 0.0, 0.0, 0.0]])
    for teacher, weight in ((smooth, 4**0.5), (sure, 1.0)):
        teacher = teacher.double().expand(2, 4)
        ratio = (wttm(student, teacher, 0.5) / ttm(student, teacher, 0.5)).item()
        assert ratio == pytest.approx(weight, rel=1e-2)


@BOTH
def test_does_not_depend_on_the_order_of_samples_or_classes_or_on_the_level_of_a_row(loss, logits) -> None:
    student, teacher = (x.detach() for x in logits())
    value = loss(student, teacher, 0.2).item()
    rows, columns = torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([4, 2, 0, 1, 3])
    level = torch.linspace(-50, 50, 6, dtype=torch.float64).unsqueeze(1)
    for s, t in (
        (student[rows], teacher[rows]),
        (student[:, columns], teacher[:, columns]),
        (student + level, teacher - level),
    ):
        assert loss(s, t, 0.2).item() == pytest.approx(value, rel=1e-11)


@BOTH
def test_large_spreads_in_float32_agree_with_the_limit(loss) -> None:
    """The teacher's sure class is not the student's: the power sum is 1, the divergence the spread."""
    student = torch.tensor([[0.0, 1e4, 0.0]], requires_grad=True)
    value = loss(student, torch.tensor([[1e4, 0.0, 0.0]]), 0.1)
    value.backward()
    assert value.item() == pytest.approx(1e4, rel=1e-6)
    torch.testing.assert_close(student.grad, torch.tensor([[-1.0, 1.0, 0.0]]))


@BOTH
def test_half_precision_logits_are_computed_in_float32(loss, logits) -> None:
    student, teacher = (x.detach().bfloat16() for x in logits())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher, 0.1)
    assert value.dtype is torch.float32
    assert value.item() == loss(student.float(), teacher.float(), 0.1).item()


@BOTH
def test_refuses_shapes_that_would_broadcast(loss) -> None:
    with pytest.raises(ValueError, match="must both be"):
        loss(torch.zeros(4, 5), torch.zeros(1, 5), 0.1)


def test_terms_read_their_own_exponent(logits, inputs) -> None:
    student, teacher = logits()
    assert TTM(0.3)(inputs(student, teacher)).item() == ttm(student, teacher, 0.3).item()
    assert WTTM(0.3)(inputs(student, teacher)).item() == wttm(student, teacher, 0.3).item()
    assert TTM()(inputs(student, teacher)).item() == ttm(student, teacher, 0.1).item()
    assert WTTM()(inputs(student, teacher)).item() == wttm(student, teacher, 0.2).item()
