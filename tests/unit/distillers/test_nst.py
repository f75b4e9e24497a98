from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from gda.distillers.nst import nst


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(student: np.ndarray, teacher: np.ndarray) -> float:
    """The squared discrepancy as three double sums of the kernel."""

    def unit(vector: np.ndarray) -> np.ndarray:
        return vector / np.sqrt((vector**2).sum())

    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        own = [unit(channel.ravel()) for channel in s]
        other = [unit(channel.ravel()) for channel in t]

        def mean(first: list[np.ndarray], second: list[np.ndarray]) -> float:
            return sum((a @ b) ** 2 for a in first for b in second) / (len(first) * len(second))

        total += mean(own, own) + mean(other, other) - 2 * mean(own, other)
    return total / len(student)


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


# More channels than positions, fewer, and one model of each.
@pytest.mark.parametrize(("channels", "size"), [((5, 7), 2), ((2, 3), 3), ((2, 11), 3), ((11, 2), 3)])
def test_value_and_gradient_are_those_of_the_formula(channels: tuple[int, int], size: int) -> None:
    student = maps(2, channels[0], size, size).requires_grad_()
    teacher = maps(2, channels[1], size, size, seed=1)
    value = nst(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(by_hand(student.detach().numpy(), teacher.numpy()), rel=1e-11)
    gradient = slope(student.detach().numpy(), lambda s: by_hand(s, teacher.numpy()))
    np.testing.assert_allclose(student.grad.numpy(), gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("size", [2, 3])
def test_gradcheck(size: int) -> None:
    student, teacher = maps(2, 5, size, size).requires_grad_(), maps(2, 4, size, size, seed=1)
    assert torch.autograd.gradcheck(lambda s: nst(s, teacher), (student,))


@pytest.mark.parametrize("size", [2, 4])
def test_only_the_set_of_channels_matters(size: int) -> None:
    """Neither their scales, signs nor order; a set that is doubled is the same distribution."""
    student, teacher = maps(3, 4, size, size), maps(3, 6, size, size, seed=1)
    value = nst(student, teacher)
    scales = torch.tensor([-1.0, 3.0, 1e-4, 50.0]).double().reshape(1, 4, 1, 1)
    order = torch.tensor([2, 0, 3, 1])
    for same in (student * scales, student[:, order], student.repeat(1, 2, 1, 1)):
        torch.testing.assert_close(nst(same, teacher), value, rtol=1e-11, atol=0)
        assert nst(student, same).item() == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("size", [2, 4])
def test_extreme_equal_and_silent_maps_have_finite_values_and_gradients(size: int) -> None:
    one = maps(2, 6, size, size).float()
    dead = one.clone()
    dead[:, 1] = 0  # a channel behind a ReLU that never fires
    for student, teacher in ((1e4 * one, one), (one, 1e4 * one), (one, one), (dead, one), (0 * one, 0 * one)):
        student = student.clone().requires_grad_()
        value = nst(student, teacher)
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()


def test_no_gradient_flows_into_the_teacher() -> None:
    student, teacher = maps(2, 3, 2, 2).requires_grad_(), maps(2, 3, 2, 2, seed=1).requires_grad_()
    nst(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_autocast_does_not_round_the_products() -> None:
    student, teacher = maps(2, 8, 4, 4).float(), maps(2, 8, 4, 4, seed=1).float()
    teacher = student + 1e-3 * teacher
    exact = nst(student.double(), teacher.double())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = nst(student, teacher)
    # In bfloat16 the three sums agree to three digits, and their difference is noise.
    assert rounded.item() == pytest.approx(exact.item(), rel=0.05)


def test_maps_of_different_size_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match="one size"):
        nst(maps(2, 3, 4, 4), maps(2, 3, 1, 1))
