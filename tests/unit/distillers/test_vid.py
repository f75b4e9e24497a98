import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gda.distillers import RunFacts
from gda.distillers.vid import VID, vid
from gda.errors import UserError
from gda.models.tap_descriptions import TapDescription


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ready(**options: object) -> VID:
    """A term for maps of 4 and 6 channels."""
    term = VID(stages=[1], **options)
    ours, theirs = TapDescription("a", (4, 2, 2), 1, True), TapDescription("b", (6, 2, 2), 1, True)
    term.setup(RunFacts(10, 10, None, {"stage1": ours}, {"stage1": theirs}))
    return term


def test_value_and_gradients_are_those_of_the_formula() -> None:
    student, teacher = maps(2, 3, 2, 2).requires_grad_(), maps(2, 3, 2, 2, seed=1)
    variance = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64, requires_grad=True)
    value = vid(student, teacher, variance)
    value.backward()
    s, t, v = student.detach().numpy(), teacher.numpy(), variance.detach().numpy()
    total = 0.0
    by_student, by_variance = np.zeros_like(s), np.zeros_like(v)
    for b, c, y, x in np.ndindex(*s.shape):
        error = s[b, c, y, x] - t[b, c, y, x]
        # The log-density of a normal distribution without its constant log(2 pi) / 2.
        density = math.exp(-(error**2) / (2 * v[c])) / math.sqrt(2 * math.pi * v[c])
        total -= math.log(density) + 0.5 * math.log(2 * math.pi)
        by_student[b, c, y, x] = error / v[c] / s.size
        by_variance[c] += 0.5 * (1 / v[c] - error**2 / v[c] ** 2) / s.size
    assert value.item() == pytest.approx(total / s.size, rel=1e-12)
    np.testing.assert_allclose(student.grad.numpy(), by_student, rtol=1e-12)
    np.testing.assert_allclose(variance.grad.numpy(), by_variance, rtol=1e-12)


def test_gradcheck() -> None:
    student, teacher = maps(2, 3, 2, 2).requires_grad_(), maps(2, 3, 2, 2, seed=1)
    variance = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, v: vid(s, teacher, v), (student, variance))


def test_equal_maps_leave_the_logarithm_of_the_variance() -> None:
    same = maps(2, 3, 2, 2)
    variance = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)
    assert vid(same, same, variance).item() == pytest.approx(0.5 * math.log(7.0) / 3, rel=1e-12)


def test_the_likeliest_variance_is_the_mean_squared_error() -> None:
    student, teacher = maps(2, 3, 4, 4), maps(2, 3, 4, 4, seed=1)
    error = (student - teacher).square().mean(dim=(0, 2, 3)).requires_grad_()
    vid(student, teacher, error).backward()
    torch.testing.assert_close(error.grad, torch.zeros(3).double(), rtol=0, atol=1e-12)


def test_order_of_samples_and_channels_does_not_matter() -> None:
    student, teacher = maps(3, 4, 2, 2), maps(3, 4, 2, 2, seed=1)
    variance = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    value = vid(student, teacher, variance)
    rows, columns = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 2])
    torch.testing.assert_close(vid(student[rows], teacher[rows], variance), value, rtol=1e-12, atol=0)
    moved = vid(student[:, columns], teacher[:, columns], variance[columns])
    torch.testing.assert_close(moved, value, rtol=1e-12, atol=0)


def test_extreme_maps_have_finite_values_and_gradients() -> None:
    term = ready()
    (variance,) = term.variances()
    student = (1e4 * maps(2, 6, 2, 2)).float().requires_grad_()
    value = vid(student, -student.detach(), variance)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    assert term.raw_variances[0].grad.isfinite().all()


@pytest.mark.parametrize(("initial", "epsilon"), [(5.0, 1e-5), (1e-3, 1e-5), (1e4, 1e-5), (2.0, 1.0)])
def test_variances_start_where_they_are_told_to(initial: float, epsilon: float) -> None:
    (variance,) = ready(initial_variance=initial, epsilon=epsilon).variances()
    torch.testing.assert_close(variance, torch.full((6,), initial), rtol=1e-5, atol=0)


def test_the_regressor_is_three_convolutions_of_the_teachers_width() -> None:
    term = ready()
    shapes = [tuple(p.shape) for p in term.regressors[0].parameters()]
    assert shapes == [(6, 4, 1, 1), (6, 6, 1, 1), (6, 6, 1, 1)]  # no biases
    assert [type(layer).__name__ for layer in term.regressors[0]] == ["Conv2d", "ReLU"] * 2 + ["Conv2d"]


@pytest.mark.parametrize("trained", [True, False])
def test_variances_are_trained_unless_told_otherwise(trained: bool) -> None:
    term = ready(train_variance=trained)
    student, teacher = maps(2, 6, 2, 2).float(), maps(2, 6, 2, 2, seed=1).float()
    value = vid(student.requires_grad_(), teacher, term.variances()[0])
    value.backward()
    assert (term.raw_variances[0].grad is not None) == trained


def test_a_first_variance_below_the_smallest_is_refused() -> None:
    with pytest.raises(UserError, match="greater than epsilon"):
        VID(initial_variance=1e-6)


def test_no_gradient_flows_into_the_teacher() -> None:
    student, teacher = maps(2, 3, 2, 2).requires_grad_(), maps(2, 3, 2, 2, seed=1).requires_grad_()
    vid(student, teacher, torch.ones(3)).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_maps_of_different_shape_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match="one shape"):
        vid(maps(2, 3, 2, 2), maps(2, 3, 1, 1), torch.ones(3))
