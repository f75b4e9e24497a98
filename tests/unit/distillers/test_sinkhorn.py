import pytest
import torch

from gda.bench.published_sinkhorn import published_sinkhorn
from gda.distillers.sinkhorn import Sinkhorn, _fits_directly, _LogTransportCost, _TransportCost, sinkhorn


def value_and_gradient(function, student, *args, **kwargs):
    student = student.detach().requires_grad_()
    value = function(student, *args, **kwargs)
    return value.detach(), torch.autograd.grad(value, student)[0]


@pytest.mark.parametrize("iterations", [1, 2, 20])
@pytest.mark.parametrize(
    ("batch", "classes", "epsilon"), [(1, 4, 0.1), (7, 3, 0.1), (32, 10, 0.3), (9, 4, 0.05)]
)
def test_equals_the_published_formulation(batch, classes, epsilon, iterations, logits) -> None:
    student, teacher = logits(batch, classes, seed=batch)
    options = {"temperature": 1.5, "epsilon": epsilon, "iterations": iterations}
    value, gradient = value_and_gradient(sinkhorn, student, teacher, **options)
    expected, expected_gradient = value_and_gradient(published_sinkhorn, student, teacher, **options)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-13)


def test_log_domain_equals_direct_domain() -> None:
    generator = torch.Generator().manual_seed(0)
    cost = 2 * torch.rand(12, 12, generator=generator, dtype=torch.float64)
    for iterations in (1, 5, 20):
        direct = value_and_gradient(_TransportCost.apply, cost, 0.1, iterations)
        logarithmic = value_and_gradient(_LogTransportCost.apply, cost, 0.1, iterations)
        torch.testing.assert_close(logarithmic, direct, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("epsilon", "dtype", "direct"),
    [
        (0.1, torch.float32, True),
        (0.05, torch.float32, True),
        (0.02, torch.float32, False),
        (0.02, torch.float64, True),
        (0.001, torch.float64, False),
    ],
)
def test_domain_follows_from_epsilon_and_dtype(epsilon: float, dtype: torch.dtype, direct: bool) -> None:
    assert _fits_directly(epsilon, dtype) is direct


@pytest.mark.parametrize("epsilon", [0.046, 0.0459])  # on both sides of the switch in float32
def test_costs_at_their_largest_stay_exact_on_both_sides_of_the_switch(epsilon: float) -> None:
    """A cost matrix of 0 and 2, where kernel entries are as small as they get."""
    generator = torch.Generator().manual_seed(1)
    cost = torch.where(torch.rand(16, 16, generator=generator) < 0.2, 0.0, 2.0)
    cost[3] = 2.0  # a student row far from every teacher row
    function = _TransportCost if _fits_directly(epsilon, torch.float32) else _LogTransportCost
    value, gradient = value_and_gradient(function.apply, cost, epsilon, 20)
    expected, expected_gradient = value_and_gradient(_LogTransportCost.apply, cost.double(), epsilon, 20)
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    error = (gradient.double() - expected_gradient).norm() / expected_gradient.norm()
    assert error < 1e-4


def test_small_epsilon_approaches_the_best_assignment(logits) -> None:
    """Far below the float32 underflow of the published kernel."""
    student, teacher = logits(batch=3, classes=4, seed=5, dtype=torch.float32)
    value, gradient = value_and_gradient(sinkhorn, student, teacher, epsilon=0.002, iterations=500)

    def probabilities(x):
        return ((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) / 2).softmax(1)

    cost = torch.cdist(probabilities(student.detach()), probabilities(teacher), p=1)
    assignments = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    best = min(sum(cost[i, j].item() for i, j in enumerate(a)) for a in assignments)
    assert value.item() == pytest.approx(best, rel=1e-3)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_very_small_epsilon_is_finite(logits) -> None:
    student, teacher = logits(batch=16, classes=10, dtype=torch.float32)
    value, gradient = value_and_gradient(sinkhorn, student, teacher, epsilon=1e-5)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_mean_is_the_sum_divided_by_the_batch(logits) -> None:
    student, teacher = logits(batch=6)
    total, total_gradient = value_and_gradient(sinkhorn, student, teacher)
    mean, mean_gradient = value_and_gradient(sinkhorn, student, teacher, reduction="mean")
    torch.testing.assert_close(mean * 6, total, rtol=1e-14, atol=0)
    torch.testing.assert_close(mean_gradient * 6, total_gradient, rtol=1e-13, atol=1e-16)


def test_debiased_is_zero_where_the_published_term_is_not(logits) -> None:
    student, _ = logits(batch=6)
    same = student.detach().clone()
    assert sinkhorn(student, same).item() > 0.01
    assert sinkhorn(student, same, debias=True).item() == 0


def test_debiased_gradient_vanishes_at_equality_once_the_rounds_converge(logits) -> None:
    """Only if the self-transport costs pass their gradient on through both of their arguments."""
    student, _ = logits(batch=4)
    same = student.detach().clone()
    _, gradient = value_and_gradient(sinkhorn, student, same, iterations=200, debias=True)
    _, biased = value_and_gradient(sinkhorn, student, same, iterations=200)
    assert gradient.abs().max() < 1e-7
    assert biased.abs().max() > 1e-3


def test_debiased_subtracts_half_of_both_self_costs(logits) -> None:
    student, teacher = (x.detach() for x in logits(batch=6))
    expected = sinkhorn(student, teacher) - (sinkhorn(student, student) + sinkhorn(teacher, teacher)) / 2
    assert sinkhorn(student, teacher, debias=True).item() == pytest.approx(expected.item(), rel=1e-12)


def test_constant_row_is_the_uniform_distribution_with_a_finite_gradient(logits) -> None:
    student, teacher = logits(batch=4, classes=10, dtype=torch.float32)
    with torch.no_grad():
        student[1] = 1000.1  # its float32 mean is not 1000.1
    value, gradient = value_and_gradient(sinkhorn, student, teacher)
    assert gradient.isfinite().all()
    assert gradient[1].abs().max() > 0
    zeros = student.detach().clone()
    zeros[1] = 0
    assert value.item() == sinkhorn(zeros, teacher).item()


def test_gradient_scales_with_what_comes_from_above(logits) -> None:
    student, teacher = logits()
    for epsilon in (0.1, 0.005):
        _, once = value_and_gradient(sinkhorn, student, teacher, epsilon=epsilon)
        _, thrice = value_and_gradient(
            lambda s, t, e=epsilon: -3 * sinkhorn(s, t, epsilon=e), student, teacher
        )
        torch.testing.assert_close(thrice, -3 * once, rtol=1e-12, atol=1e-15)


def test_backward_can_run_twice(logits) -> None:
    """Backward must not write into what forward saved."""
    student, teacher = logits()
    for epsilon in (0.1, 0.005):
        value = sinkhorn(student, teacher, epsilon=epsilon)
        (first,) = torch.autograd.grad(value, student, retain_graph=True)
        (second,) = torch.autograd.grad(value, student)
        assert torch.equal(first, second)


def test_term_hands_on_every_setting(logits, inputs) -> None:
    student, teacher = logits()
    options = {"temperature": 3.0, "epsilon": 0.2, "iterations": 4, "reduction": "mean", "debias": True}
    value = Sinkhorn(**options)(inputs(student, teacher))
    assert value.item() == sinkhorn(student, teacher, **options).item()


@pytest.mark.parametrize(
    "wrong", [{"epsilon": 0.0}, {"temperature": -1.0}, {"iterations": 0}, {"reduction": "none"}]
)
def test_wrong_settings_are_refused(wrong: dict, logits) -> None:
    with pytest.raises(ValueError):
        sinkhorn(*logits(), **wrong)
