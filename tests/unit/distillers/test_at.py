from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from gda.distillers.at import at, attention


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(student: np.ndarray, teacher: np.ndarray, p: float) -> float:
    """The paper's maps Q, position by position."""
    total, count = 0.0, 0
    for s, t in zip(student, teacher, strict=True):
        rows = []
        for sample in (s, t):
            channels, height, width = sample.shape
            q = np.zeros((height, width))
            for y in range(height):
                for x in range(width):
                    q[y, x] = sum(abs(sample[c, y, x]) ** p for c in range(channels)) / channels
            rows.append(q / np.sqrt((q**2).sum()))
        total += ((rows[0] - rows[1]) ** 2).sum()
        count += rows[0].size
    return total / count


def slope(values: np.ndarray, of: Callable[[np.ndarray], float], step: float = 1e-6) -> np.ndarray:
    """Central differences of a function of one array."""
    gradient = np.zeros_like(values)
    for index in np.ndindex(*values.shape):
        ends = []
        for sign in (1, -1):
            moved = values.copy()
            moved[index] += sign * step
            ends.append(of(moved))
        gradient[index] = (ends[0] - ends[1]) / (2 * step)
    return gradient


@pytest.mark.parametrize("p", [1.0, 2.0, 2.5, 4.0])
def test_value_and_gradient_are_those_of_the_formula(p: float) -> None:
    student, teacher = maps(2, 3, 2, 4).requires_grad_(), maps(2, 5, 2, 4, seed=1)
    value = at(student, teacher, p)
    value.backward()
    expected = by_hand(student.detach().numpy(), teacher.numpy(), p)
    assert value.item() == pytest.approx(expected, rel=1e-12)
    gradient = slope(student.detach().numpy(), lambda s: by_hand(s, teacher.numpy(), p))
    np.testing.assert_allclose(student.grad.numpy(), gradient, rtol=1e-5, atol=1e-9)


def test_gradcheck() -> None:
    student, teacher = maps(2, 3, 3, 2).requires_grad_(), maps(2, 2, 3, 2, seed=1)
    assert torch.autograd.gradcheck(lambda s: at(s, teacher, 2.0), (student,))


def test_only_where_a_map_is_active_matters() -> None:
    """Neither scale, sign, order nor number of channels."""
    student, teacher = maps(3, 4, 2, 2), maps(3, 6, 2, 2, seed=1)
    value = at(student, teacher)
    order = torch.tensor([2, 0, 3, 1])
    for same in (-student, 1e-8 * student, 7 * student, student[:, order], student.repeat(1, 2, 1, 1)):
        torch.testing.assert_close(at(same, teacher), value, rtol=1e-12, atol=0)
    assert at(student, -2 * student).item() == pytest.approx(0, abs=1e-30)
    assert at(student.flip(3), teacher).item() != pytest.approx(value.item(), rel=1e-3)


def test_no_gradient_flows_into_the_teacher() -> None:
    student, teacher = maps(2, 3, 2, 2).requires_grad_(), maps(2, 3, 2, 2, seed=1).requires_grad_()
    at(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_attention_has_length_one() -> None:
    torch.testing.assert_close(attention(maps(3, 2, 4, 4), 3.0).norm(dim=1), torch.ones(3).double())


@pytest.mark.parametrize("p", [1.0, 2.0, 12.0])
def test_extreme_equal_and_silent_maps_have_finite_values_and_gradients(p: float) -> None:
    one = maps(2, 3, 4, 4).float()
    for student, teacher in ((1e4 * one, one), (one, 1e4 * one), (one, one), (0 * one, one), (one, 0 * one)):
        student = student.clone().requires_grad_()
        value = at(student, teacher, p)
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()


def test_maps_of_different_size_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match="one size"):
        at(maps(2, 3, 4, 4), maps(2, 3, 1, 1))
