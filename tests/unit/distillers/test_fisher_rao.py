import math

import pytest
import torch

from gda.distillers.fisher_rao import SMALLEST_STD, FisherRao, fisher_rao


def gaussian_row(mean: float, std: float) -> torch.Tensor:
    """Logits with exactly this mean and unbiased standard deviation."""
    return mean + std * torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64)


def test_equal_means_give_the_log_ratio_of_spreads() -> None:
    """Along the axis of equal means the geodesic has length sqrt(2) |log(v1 / v2)|."""
    value = fisher_rao(gaussian_row(0.3, 2.0), gaussian_row(0.3, 0.5))
    assert value.item() == pytest.approx(math.sqrt(2) * math.log(4), rel=1e-12)


def test_agrees_with_the_published_form(logits) -> None:
    student, teacher = logits(batch=5, classes=7)
    dm = student.mean(1) - teacher.mean(1)
    v1, v2 = student.std(1), teacher.std(1)
    root = ((dm**2 + 2 * (v1 - v2) ** 2) / (dm**2 + 2 * (v1 + v2) ** 2)).sqrt()
    expected = 2 * math.sqrt(2) * root.atanh().mean()
    assert fisher_rao(student, teacher).item() == pytest.approx(expected.item(), rel=1e-12)


def test_keeps_its_digits_where_atanh_loses_them() -> None:
    """Spreads 1e6 apart: in float32 the atanh's argument is 1 to all digits."""
    value = fisher_rao(gaussian_row(0, 1e3).float(), gaussian_row(0, 1e-3).float())
    assert value.item() == pytest.approx(math.sqrt(2) * math.log(1e6), rel=1e-6)


def test_scales_out() -> None:
    one = fisher_rao(gaussian_row(1.0, 2.0), gaussian_row(-0.5, 0.7))
    assert fisher_rao(gaussian_row(1e3, 2e3), gaussian_row(-5e2, 7e2)).item() == pytest.approx(one.item())


def test_constant_row_moves_by_its_mean_only() -> None:
    student = torch.full((1, 3), 1.7, requires_grad=True)
    value = fisher_rao(student, gaussian_row(0.0, 1.0).float())
    value.backward()
    expected = 2 * math.sqrt(2) * math.asinh(math.sqrt((1.7**2 + 2) / (8 * SMALLEST_STD)))
    assert value.item() == pytest.approx(expected, rel=1e-5)
    # Down towards the teacher's mean, all classes alike: nothing through the standard deviation.
    assert (student.grad > 0).all()
    torch.testing.assert_close(student.grad, student.grad.mean().expand(1, 3))


def test_rounding_of_the_mean_is_no_spread() -> None:
    """0.1 * 10 / 10 is not 0.1 in float32; the row is constant all the same."""
    student = torch.full((1, 10), 1000.1, requires_grad=True)
    teacher = torch.full((1, 10), 1000.1)
    value = fisher_rao(student, teacher)
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().max() == 0


def test_equal_mean_and_spread_of_other_logits_is_zero() -> None:
    student = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    value = fisher_rao(student, torch.tensor([[3.0, 1.0, 2.0]]))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.isfinite().all()


def test_term_and_one_class(logits, inputs) -> None:
    student, teacher = logits()
    assert FisherRao()(inputs(student, teacher)).item() == fisher_rao(student, teacher).item()
    with pytest.raises(ValueError, match="two classes"):
        fisher_rao(student[:, :1], teacher[:, :1])
