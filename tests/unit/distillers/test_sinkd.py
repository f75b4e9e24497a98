import numpy as np
import pytest
import torch

from gda.distillers.sinkd import SinKD, sinkd
from gda.distillers.sinkhorn import sinkhorn


def by_hand(student, teacher, temperature, epsilon, iterations):
    """The published iteration, on the plan itself."""

    def soft(x):
        e = np.exp(x / temperature)
        return e / e.sum(axis=1, keepdims=True)

    p, q = soft(student), soft(teacher)
    cost = np.array([[np.abs(a - b).sum() for b in q] for a in p])
    plan = np.exp(-cost / epsilon)
    for _ in range(iterations):
        plan = plan / plan.sum(axis=1, keepdims=True)
        plan = plan / plan.sum(axis=0, keepdims=True)
    return (plan * cost).sum()


def slopes(function, student, step=1e-5):
    """Central differences."""
    gradient = np.zeros_like(student)
    for place in np.ndindex(student.shape):
        up, down = student.copy(), student.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (function(up) - function(down)) / (2 * step)
    return gradient


@pytest.mark.parametrize(
    ("temperature", "epsilon", "iterations"), [(2.0, 0.1, 20), (1.0, 0.3, 1), (4.0, 0.05, 5)]
)
def test_value_and_gradient_by_hand(temperature: float, epsilon: float, iterations: int, logits) -> None:
    student, teacher = logits()
    value = sinkd(student, teacher, temperature, epsilon, iterations)
    (gradient,) = torch.autograd.grad(value, student)
    s, t = student.detach().numpy(), teacher.numpy()
    assert value.item() == pytest.approx(by_hand(s, t, temperature, epsilon, iterations), rel=1e-12)
    expected = slopes(lambda x: by_hand(x, t, temperature, epsilon, iterations), s)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("epsilon", [0.1, 0.004])  # both domains of the solver
def test_gradient_agrees_with_finite_differences(epsilon: float, logits) -> None:
    student, teacher = logits(batch=4, seed=3)
    assert torch.autograd.gradcheck(
        lambda s: sinkd(s, teacher, epsilon=epsilon, iterations=5), (student,), eps=1e-7, atol=1e-5
    )


def test_no_gradient_reaches_the_teacher(logits) -> None:
    student, teacher = logits()
    teacher.requires_grad_()
    sinkd(student, teacher).backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


def test_sees_the_scale_of_the_logits_which_the_alignment_term_does_not(logits) -> None:
    student, teacher = (x.detach() for x in logits())
    aligned = sinkhorn(student, teacher).item()
    assert sinkhorn(3 * student, teacher).item() == pytest.approx(aligned, rel=1e-5)
    assert sinkd(3 * student, teacher).item() != pytest.approx(sinkd(student, teacher).item(), rel=1e-2)
    z_scored = ((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) for x in (student, teacher))
    assert sinkd(*z_scored).item() == pytest.approx(aligned, rel=1e-5)


def test_does_not_depend_on_the_order_of_either_batch_or_of_the_classes_or_on_the_level_of_a_row(
    logits,
) -> None:
    student, teacher = (x.detach() for x in logits())
    value = sinkd(student, teacher).item()
    rows, columns = torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([4, 2, 0, 1, 3])
    level = torch.linspace(-50, 50, 6, dtype=torch.float64).unsqueeze(1)
    assert sinkd(student[rows], teacher).item() == pytest.approx(value, rel=1e-9)
    assert sinkd(student[:, columns], teacher[:, columns]).item() == pytest.approx(value, rel=1e-11)
    assert sinkd(student + level, teacher - level).item() == pytest.approx(value, rel=1e-11)


def test_one_image_costs_the_distance_of_its_two_predictions(logits) -> None:
    student, teacher = (x.detach() for x in logits(batch=1))
    expected = ((student / 2).softmax(1) - (teacher / 2).softmax(1)).abs().sum()
    assert sinkd(student, teacher).item() == pytest.approx(expected.item(), rel=1e-12)
    assert sinkd(student, student).item() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_is_finite_for_constant_rows_and_large_spreads(dtype: torch.dtype, logits) -> None:
    student, teacher = (x.detach() for x in logits())
    student[0] = teacher[0]
    student[1], teacher[1] = 0.3, -0.7
    student[2] *= 1e4
    teacher[3] *= 1e4
    student[4] = torch.tensor([1e4, -1e4, 0.0, 0.0, 0.0])
    teacher[4] = torch.tensor([-1e4, 1e4, 0.0, 0.0, 0.0])
    student = student.to(dtype).requires_grad_()
    value = sinkd(student, teacher.to(dtype))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_bfloat16_autocast_computes_in_float32(logits) -> None:
    student, teacher = logits(dtype=torch.float32)
    value = sinkd(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = sinkd(student, teacher)
    assert cast.dtype is torch.float32
    assert cast.item() == value.item()


def test_mean_is_the_sum_divided_by_the_batch(logits) -> None:
    student, teacher = logits()
    mean = sinkd(student, teacher, reduction="mean").item()
    assert mean * 6 == pytest.approx(sinkd(student, teacher).item(), rel=1e-14)


@pytest.mark.parametrize(
    "wrong", [{"epsilon": 0.0}, {"temperature": -1.0}, {"iterations": 0}, {"reduction": "none"}]
)
def test_wrong_settings_are_refused(wrong: dict, logits) -> None:
    with pytest.raises(ValueError):
        sinkd(*logits(), **wrong)


def test_term_hands_on_every_setting(logits, inputs) -> None:
    student, teacher = logits()
    options = {"temperature": 3.0, "epsilon": 0.2, "iterations": 4, "reduction": "mean"}
    assert SinKD(**options)(inputs(student, teacher)).item() == sinkd(student, teacher, **options).item()
    assert SinKD()(inputs(student, teacher)).item() == sinkd(student, teacher).item()
