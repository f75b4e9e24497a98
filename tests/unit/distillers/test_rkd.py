"""Relational distillation; figures of the published implementation are compared in tests/parity."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import gda.distillers.rkd as module
from gda.distillers import ModelOutput, Progress, TermInputs
from gda.distillers.rkd import RKDAngle, RKDDistance, rkd_angle, rkd_distance

Array = np.ndarray
LOSSES = {
    "distance": rkd_distance,
    "distance_squared": lambda s, t: rkd_distance(s, t, squared=True),
    "angle": rkd_angle,
}
all_losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def smooth_l1(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def distance_by_definition(student: Array, teacher: Array, squared: bool = False) -> float:
    def relative(points: Array) -> Array:
        batch = len(points)
        table = np.zeros((batch, batch))
        for i, j in itertools.permutations(range(batch), 2):
            table[i, j] = max(np.sum((points[i] - points[j]) ** 2), 1e-12) ** (1 if squared else 0.5)
        return table / (table.sum() / (batch * (batch - 1)))

    difference = relative(student) - relative(teacher)
    return float(np.mean([smooth_l1(x) for x in difference.ravel()]))


def angle_by_definition(student: Array, teacher: Array, together: frozenset[int] = frozenset()) -> float:
    """With angles left out that have one side between points that are ``together``."""

    def cosine(points: Array, i: int, j: int, k: int) -> float:
        if j == i or k == i or {i, j} <= together or {i, k} <= together:
            return 0.0
        a, b = points[j] - points[i], points[k] - points[i]
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    triples = itertools.product(range(len(student)), repeat=3)
    return float(np.mean([smooth_l1(cosine(student, *ijk) - cosine(teacher, *ijk)) for ijk in triples]))


def slope_of(function: Callable[[Array], float], at: Array, step: float = 1e-6) -> Array:
    """Gradient by central differences."""
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        there, here = at.copy(), at.copy()
        there[index] += step
        here[index] -= step
        gradient[index] = (function(there) - function(here)) / (2 * step)
    return gradient


def points(
    batch: int = 5, student: int = 4, teacher: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    drawn = (
        torch.randn(batch, width, generator=generator, dtype=torch.float64) for width in (student, teacher)
    )
    ours, theirs = (2 * each for each in drawn)
    return ours.to(dtype).requires_grad_(), theirs.to(dtype)


DEFINITIONS = {
    "distance": distance_by_definition,
    "distance_squared": lambda s, t: distance_by_definition(s, t, squared=True),
    "angle": angle_by_definition,
}


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_follow_the_definition(name: str) -> None:
    student, teacher = points()
    loss = LOSSES[name](student, teacher)
    loss.backward()
    ours, theirs = student.detach().numpy(), teacher.numpy()
    assert loss.item() == pytest.approx(DEFINITIONS[name](ours, theirs), rel=1e-12)
    expected = slope_of(lambda moved: DEFINITIONS[name](moved, theirs), ours)
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-6, atol=1e-10)


@all_losses
def test_gradient_agrees_with_finite_differences(loss) -> None:
    student, teacher = points(batch=4, student=3)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student,))


@all_losses
def test_does_not_see_shift_scale_rotation_or_order(loss) -> None:
    student, teacher = (x.detach() for x in points(batch=6))
    value = loss(student, teacher)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).double())[0]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for moved in (student + 7, 0.01 * student, student @ rotation):
        torch.testing.assert_close(loss(moved, teacher), value, rtol=1e-10, atol=0)
    torch.testing.assert_close(loss(student, 3 * teacher - 2), value, rtol=1e-10, atol=0)
    torch.testing.assert_close(loss(student[order], teacher[order]), value, rtol=1e-12, atol=0)
    assert not torch.isclose(loss(student[order], teacher), value)


@all_losses
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_zero_with_zero_gradient_at_equality(loss, dtype: torch.dtype) -> None:
    student, _ = points(dtype=dtype)
    value = loss(student, student.detach().clone())
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().max() == 0


@all_losses
def test_trains_the_student_only(loss) -> None:
    student, teacher = points()
    teacher.requires_grad_()
    loss(student, teacher).backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


def test_coincident_points_have_the_gradient_of_their_other_angles() -> None:
    """Rows 0 and 1 are one point: the angle there, which no direction defines, pulls at nothing."""
    student, teacher = points()
    with torch.no_grad():
        student[1] = student[0]
    value = rkd_angle(student, teacher)
    value.backward()
    ours, theirs = student.detach().numpy(), teacher.numpy()
    # The cosine is 0 for the student; the teacher's stays what it is.
    pair = frozenset({0, 1})

    def others(moved: Array) -> float:
        return angle_by_definition(moved, theirs, pair)

    expected = slope_of(others, ours)
    # Leaving the pair out for both changes the value, not the gradient.
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-6, atol=1e-9)
    assert value.item() > others(ours)


@all_losses
def test_is_finite_where_all_points_are_one(loss) -> None:
    student, teacher = torch.full((4, 3), 2.5, requires_grad=True), points(batch=4)[1].float()
    for pair in ((student, teacher), (student, torch.zeros(4, 2))):
        value = loss(*pair)
        (gradient,) = torch.autograd.grad(value, student)
        assert value.isfinite()
        assert gradient.abs().max() == 0


@all_losses
def test_a_single_sample_has_no_relation(loss) -> None:
    student = torch.ones(1, 3, requires_grad=True)
    value = loss(student, torch.ones(1, 5))
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().max() == 0


@all_losses
@pytest.mark.parametrize("factor", [1e-6, 1e4])
def test_float32_keeps_its_digits_at_extreme_scales_and_far_from_the_origin(loss, factor: float) -> None:
    student, teacher = points(batch=8, student=16, dtype=torch.float32)
    exact = loss(student.detach().double(), teacher.double())
    (gradient,) = torch.autograd.grad(loss(factor * student, teacher), student)
    assert gradient.isfinite().all()
    assert loss(factor * student, teacher).item() == pytest.approx(exact.item(), rel=1e-5)
    # So far from the origin, products of features would have lost all digits of every distance.
    far = (student.detach() + 1e4).requires_grad_()
    exactly_far = far.detach().double().requires_grad_()
    value, exact = loss(far, teacher), loss(exactly_far, teacher.double())
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    gradient, expected = torch.autograd.grad(value, far)[0], torch.autograd.grad(exact, exactly_far)[0]
    assert (gradient - expected).norm() <= 1e-5 * expected.norm()


@all_losses
def test_half_precision_is_brought_up_also_under_autocast(loss) -> None:
    student, teacher = (x.detach().bfloat16() for x in points(batch=8, student=16))
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher)
        value.backward()
    assert value.dtype is torch.float32
    assert student.grad.dtype is torch.bfloat16
    again = student.detach().float().requires_grad_()
    expected = loss(again, teacher.float())
    expected.backward()
    assert value.item() == expected.item()
    torch.testing.assert_close(student.grad, again.grad.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("block", [1, 1000, 10**9])
def test_blocks_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = points(batch=20)
    first = torch.autograd.grad(rkd_angle(student, teacher), student)[0]
    monkeypatch.setattr(module, "BLOCK_CPU", block)
    assert rkd_angle(student, teacher).item() == pytest.approx(rkd_angle(student, teacher).item(), rel=1e-14)
    again = torch.autograd.grad(rkd_angle(student, teacher), student)[0]
    torch.testing.assert_close(again, first, rtol=1e-11, atol=1e-16)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation puts out."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


@all_losses
def test_neither_differences_nor_all_cosines_are_ever_held(loss) -> None:
    batch, width = 72, 640
    student, teacher = points(batch, width, 8, torch.float32)
    with Largest() as largest:
        loss(student, teacher).backward()
    assert 0 < largest.numbers <= max(module.BLOCK_CPU, batch * width)
    assert largest.numbers < batch**3 < batch**2 * width


@all_losses
@pytest.mark.parametrize(
    "shapes", [((4, 3), (5, 3)), ((4, 3), (4,)), ((1, 3), (4, 3)), ((4, 3, 1, 1), (4, 3))]
)
def test_other_shapes_are_refused(loss, shapes) -> None:
    with pytest.raises(ValueError, match="must be"):
        loss(*(torch.zeros(shape) for shape in shapes))


def test_terms_compare_what_the_heads_are_given() -> None:
    student, teacher = points()
    inputs = TermInputs(
        images=torch.zeros(5, 3, 1, 1),
        targets=torch.zeros(5, dtype=torch.long),
        indices=torch.arange(5),
        student=ModelOutput(torch.zeros(5, 2), {"pooled": student}),
        # Some heads are given maps.
        teacher=ModelOutput(torch.zeros(5, 2), {"pooled": teacher.reshape(5, 3, 1, 1)}),
        progress=Progress(0, 1),
        generator=torch.Generator(),
    )
    for term in (RKDDistance(), RKDAngle()):
        assert term.student_features == term.teacher_features == ("pooled",)
    assert RKDDistance()(inputs).item() == rkd_distance(student, teacher).item()
    assert RKDDistance(squared=True)(inputs).item() == rkd_distance(student, teacher, True).item()
    assert RKDAngle()(inputs).item() == rkd_angle(student, teacher).item()
