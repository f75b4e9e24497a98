import math

import numpy as np
import pytest
import torch

from gda.distillers.nkd import NKD, nkd, nkd_parts

TARGET = torch.tensor([0, 4, 2, 1, 3, 2])


def by_hand(student, teacher, target, gamma, temperature):
    """The formula in probability space, class by class."""
    total = 0.0
    for s, t, y in zip(student, teacher, target, strict=True):
        p, q = np.exp(s) / np.exp(s).sum(), np.exp(t) / np.exp(t).sum()
        total -= q[y] * math.log(p[y])
        others = [c for c in range(len(s)) if c != y]
        p_sum = sum(math.exp(s[c] / temperature) for c in others)
        q_sum = sum(math.exp(t[c] / temperature) for c in others)
        for c in others:
            share = math.exp(t[c] / temperature) / q_sum
            total -= gamma * temperature**2 * share * math.log(math.exp(s[c] / temperature) / p_sum)
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


@pytest.mark.parametrize(("gamma", "temperature"), [(1.5, 1.0), (3.5, 3.0), (0.0, 2.0)])
def test_value_and_gradient_by_hand(gamma: float, temperature: float, logits) -> None:
    student, teacher = logits()
    value = nkd(student, teacher, TARGET, gamma, temperature)
    (gradient,) = torch.autograd.grad(value, student)
    s, t, y = student.detach().numpy(), teacher.numpy(), TARGET.numpy()
    assert value.item() == pytest.approx(by_hand(s, t, y, gamma, temperature), rel=1e-12)
    expected = slopes(lambda x: by_hand(x, t, y, gamma, temperature), s)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-6, atol=1e-8)


def test_gradient_agrees_with_finite_differences(logits) -> None:
    student, teacher = logits(batch=6, seed=1)
    assert torch.autograd.gradcheck(lambda s: nkd(s, teacher, TARGET, 1.5, 2.0), (student,))


def test_no_gradient_reaches_the_teacher(logits) -> None:
    student, teacher = logits()
    teacher.requires_grad_()
    nkd(student, teacher, TARGET, 1.5, 1.0).backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


def test_other_classes_pull_nowhere_where_both_agree_on_them(logits) -> None:
    student, _ = logits()
    same = student.detach().clone()
    same[torch.arange(6), TARGET] += 3  # the target class is not one of them
    _, others = nkd_parts(student, same, TARGET, 2.0)
    (gradient,) = torch.autograd.grad(others, student)
    assert others.item() > 0.1
    assert gradient.abs().max() < 1e-15


def test_does_not_depend_on_the_order_of_samples_or_classes_or_on_the_level_of_a_row(logits) -> None:
    student, teacher = (x.detach() for x in logits())
    value = nkd(student, teacher, TARGET, 1.5, 2.0).item()
    rows, columns = torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([4, 2, 0, 1, 3])
    moved = torch.argsort(columns)[TARGET]  # where each target's column has gone
    level = torch.linspace(-50, 50, 6, dtype=torch.float64).unsqueeze(1)
    assert nkd(student[rows], teacher[rows], TARGET[rows], 1.5, 2.0).item() == pytest.approx(value, rel=1e-12)
    shuffled = nkd(student[:, columns], teacher[:, columns], moved, 1.5, 2.0)
    assert shuffled.item() == pytest.approx(value, rel=1e-12)
    shifted = nkd(student + level, teacher - level, TARGET, 1.5, 2.0)
    assert shifted.item() == pytest.approx(value, rel=1e-11)


def test_soft_targets_mean_their_most_probable_class(logits) -> None:
    student, teacher = logits(batch=2, classes=3)
    soft = torch.tensor([[0.3, 0.7, 0.0], [0.1, 0.2, 0.7]], dtype=torch.float64)
    hard = torch.tensor([1, 2])
    assert nkd(student, teacher, soft, 1.5, 1).item() == nkd(student, teacher, hard, 1.5, 1).item()
    assert nkd(student, teacher, soft, 1.5, 1).item() != nkd(student, teacher, hard - 1, 1.5, 1).item()


def test_two_classes_leave_the_target_part_and_one_class_nothing(logits) -> None:
    student, teacher = logits(classes=2)
    _, others = nkd_parts(student, teacher, TARGET % 2, 1.0)
    assert others.item() == 0
    with pytest.raises(ValueError, match="two classes"):
        nkd(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), 1.5, 1.0)


def test_large_spreads_in_float32_agree_with_the_limit() -> None:
    """The teacher is sure of class 0, the student of class 1; the target is class 2."""
    student = torch.tensor([[0.0, 1e4, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[1e4, 0.0, 0.0, 0.0]])
    target_part, others = nkd_parts(student, teacher, torch.tensor([2]), 1.0)
    assert target_part.item() == 0  # q_y is 0
    assert others.item() == pytest.approx(1e4, rel=1e-6)
    (target_part + others).backward()
    torch.testing.assert_close(student.grad, torch.tensor([[-1.0, 1.0, 0.0, 0.0]]))


def test_differences_beside_a_large_target_are_not_rounded_away() -> None:
    student = torch.tensor([[1e6, 0.011, 0.022, 0.0]])
    teacher = torch.tensor([[1e6, 0.0, 0.03, 0.01]])
    _, others = nkd_parts(student, teacher, torch.tensor([0]), 1.0)
    # Beside 1e6, float32 rounds to sixteenths.
    rest = nkd_parts(student[:, 1:], teacher[:, 1:], torch.tensor([0]), 1.0)[1]
    p, q = (x[0, 1:].double() for x in (student, teacher))
    expected = -(q.softmax(0) * p.log_softmax(0)).sum().item()
    assert others.item() == pytest.approx(expected, rel=1e-6)
    assert rest.item() != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype, logits) -> None:
    student, teacher = (x.detach().to(dtype) for x in logits())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = nkd(student, teacher, TARGET, 1.5, 1.0)
    assert value.dtype is torch.float32
    assert value.item() == pytest.approx(nkd(student.float(), teacher.float(), TARGET, 1.5, 1.0).item())


def test_term_reads_targets_and_its_own_settings(logits, inputs) -> None:
    student, teacher = logits()
    value = NKD(2.0, 3.0)(inputs(student, teacher, TARGET))
    assert value.item() == nkd(student, teacher, TARGET, 2.0, 3.0).item()


def test_without_labels_the_teachers_choice_is_the_target(logits, inputs) -> None:
    student, teacher = logits()
    value = NKD()(inputs(student, teacher, teacher.softmax(1)))
    assert value.item() == nkd(student, teacher, teacher.argmax(1), 1.5, 1.0).item()
