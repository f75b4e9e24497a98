from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from gda.distillers import ModelOutput, Progress, TermInputs
from gda.distillers.pkt import PKT, pkt

Array = np.ndarray


def by_definition(student: Array, teacher: Array) -> float:
    def probabilities(vectors: Array) -> Array:
        batch = len(vectors)
        kernel = np.empty((batch, batch))
        for i in range(batch):
            for j in range(batch):
                a, b = vectors[i], vectors[j]
                kernel[i, j] = (a @ b / np.sqrt((a @ a) * (b @ b)) + 1) / 2
        return kernel / kernel.sum(axis=1, keepdims=True)

    p, q = probabilities(student), probabilities(teacher)
    return float(np.mean(q * np.log((q + 1e-7) / (p + 1e-7))))


def slope_of(function: Callable[[Array], float], at: Array, step: float = 1e-6) -> Array:
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        there, here = at.copy(), at.copy()
        there[index] += step
        here[index] -= step
        gradient[index] = (function(there) - function(here)) / (2 * step)
    return gradient


def vectors(
    batch: int = 5, student: int = 4, teacher: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    ours, theirs = (
        2 * torch.randn(batch, width, generator=generator, dtype=torch.float64)
        for width in (student, teacher)
    )
    return ours.to(dtype).requires_grad_(), theirs.to(dtype)


def test_value_and_gradient_follow_the_definition() -> None:
    student, teacher = vectors()
    loss = pkt(student, teacher)
    loss.backward()
    ours, theirs = student.detach().numpy(), teacher.numpy()
    assert loss.item() == pytest.approx(by_definition(ours, theirs), rel=1e-12)
    expected = slope_of(lambda moved: by_definition(moved, theirs), ours)
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-6, atol=1e-10)


def test_gradient_agrees_with_finite_differences() -> None:
    student, teacher = vectors(batch=4)
    assert torch.autograd.gradcheck(lambda s: pkt(s, teacher), (student,))


def test_trains_the_student_only() -> None:
    student, teacher = vectors()
    pkt(student, teacher.requires_grad_()).backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


def test_sees_directions_only_and_no_order() -> None:
    student, teacher = (x.detach() for x in vectors(batch=6))
    value = pkt(student, teacher)
    lengths = torch.linspace(0.1, 9, 6, dtype=torch.float64).unsqueeze(1)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).double())[0]
    torch.testing.assert_close(
        pkt(lengths * student @ rotation, teacher / lengths), value, rtol=1e-11, atol=0
    )
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(pkt(student[order], teacher[order]), value, rtol=1e-12, atol=0)
    assert not torch.isclose(pkt(student[order], teacher), value)
    assert not torch.isclose(pkt(student + 1, teacher), value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_zero_with_zero_gradient_at_equality(dtype: torch.dtype) -> None:
    student, _ = vectors(dtype=dtype)
    value = pkt(student, 3 * student.detach())
    value.backward()
    roundoff = torch.finfo(dtype).eps
    assert abs(value.item()) <= roundoff
    # The 1e-7 within the logarithms moves the minimum by as little.
    assert student.grad.abs().max() <= 1e-7


def test_a_vector_of_zeros_is_equally_far_from_all_and_moves_nowhere() -> None:
    student, teacher = vectors(dtype=torch.float32)
    with torch.no_grad():
        student[2] = 0
        teacher[0] = 0
    value = pkt(student, teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad[2].abs().max() == 0
    assert 0 < student.grad.abs().max() < 1
    # All zeros: every neighbour is as near as any other, for both.
    assert pkt(torch.zeros(4, 3), torch.zeros(4, 2)).item() == 0


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_float32_keeps_its_digits_at_extreme_scales(factor: float) -> None:
    student, teacher = vectors(batch=8, student=16, dtype=torch.float32)
    exact = pkt(student.detach().double(), teacher.double())
    value = pkt(factor * student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)
    assert gradient.isfinite().all()


def test_half_precision_is_brought_up_also_under_autocast() -> None:
    student, teacher = (x.detach().bfloat16() for x in vectors(batch=8, student=16))
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = pkt(student, teacher)
    value.backward()
    assert value.dtype is torch.float32
    assert value.item() == pkt(student.detach().float(), teacher.float()).item()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4, 3), (4,)), ((1, 3), (4, 3))])
def test_other_shapes_are_refused(shapes) -> None:
    with pytest.raises(ValueError, match="must be"):
        pkt(*(torch.zeros(shape) for shape in shapes))


def test_term_compares_what_the_heads_are_given() -> None:
    student, teacher = vectors()
    term = PKT()
    assert term.student_features == term.teacher_features == ("pooled",)
    inputs = TermInputs(
        images=torch.zeros(5, 3, 1, 1),
        targets=torch.full((5, 2), 0.5),
        indices=torch.arange(5),
        student=ModelOutput(torch.zeros(5, 2), {"pooled": student}),
        teacher=ModelOutput(torch.zeros(5, 2), {"pooled": teacher}),
        progress=Progress(0, 1),
        generator=torch.Generator(),
    )
    assert term(inputs).item() == pkt(student, teacher).item()
