from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gda.distillers import ModelOutput, Progress, RunFacts, TermInputs
from gda.distillers.sp import SP, sp
from gda.models import create_model

Array = np.ndarray


def by_definition(student: Array, teacher: Array, zero: int | None = None) -> float:
    """With the similarities of the student's map ``zero`` left at 0."""

    def similarities(vectors: Array, zero: int | None = None) -> Array:
        rows = [[float(a @ b) for b in vectors] for a in vectors]
        lengths = [np.inf if i == zero else sum(x * x for x in row) ** 0.5 for i, row in enumerate(rows)]
        return np.array([[x / length for x in row] for row, length in zip(rows, lengths, strict=True)])

    return float(np.sum((similarities(teacher) - similarities(student, zero)) ** 2) / len(student) ** 2)


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


def inputs(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> TermInputs:
    batch = len(next(iter(student.values())))
    return TermInputs(
        images=torch.zeros(batch, 3, 1, 1),
        targets=torch.full((batch, 2), 0.5),
        indices=torch.arange(batch),
        student=ModelOutput(torch.zeros(batch, 2), student),
        teacher=ModelOutput(torch.zeros(batch, 2), teacher),
        progress=Progress(0, 1),
        generator=torch.Generator(),
    )


def test_value_and_gradient_follow_the_definition() -> None:
    student, teacher = vectors()
    loss = sp(student, teacher)
    loss.backward()
    ours, theirs = student.detach().numpy(), teacher.numpy()
    assert loss.item() == pytest.approx(by_definition(ours, theirs), rel=1e-12)
    expected = slope_of(lambda moved: by_definition(moved, theirs), ours)
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-6, atol=1e-10)


def test_gradient_agrees_with_finite_differences() -> None:
    student, teacher = vectors(batch=4)
    assert torch.autograd.gradcheck(lambda s: sp(s, teacher), (student,))


def test_trains_the_student_only() -> None:
    student, teacher = vectors()
    sp(student, teacher.requires_grad_()).backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


def test_does_not_see_scale_rotation_or_order() -> None:
    student, teacher = (x.detach() for x in vectors(batch=6))
    value = sp(student, teacher)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).double())[0]
    torch.testing.assert_close(sp(5 * student @ rotation, teacher / 7), value, rtol=1e-11, atol=0)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(sp(student[order], teacher[order]), value, rtol=1e-12, atol=0)
    assert not torch.isclose(sp(student[order], teacher), value)
    assert not torch.isclose(sp(student + 1, teacher), value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_zero_with_zero_gradient_at_equality(dtype: torch.dtype) -> None:
    student, _ = vectors(dtype=dtype)
    value = sp(student, 2 * student.detach())
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().max() == 0


def test_a_map_of_zeros_is_similar_to_none() -> None:
    student, teacher = vectors()
    with torch.no_grad():
        student[2] = 0
    value = sp(student, teacher)
    value.backward()
    ours, theirs = student.detach().numpy(), teacher.numpy()
    assert value.item() == pytest.approx(by_definition(ours, theirs, zero=2), rel=1e-12)
    # Its own row has no gradient; that of the others, in which it is a column, stays.
    expected = slope_of(lambda moved: by_definition(moved, theirs, zero=2), ours)
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-6, atol=1e-10)
    nothing = torch.zeros(4, 3, requires_grad=True)
    value = sp(nothing, torch.zeros(4, 2))
    value.backward()
    assert value.item() == 0
    assert nothing.grad.abs().max() == 0


@pytest.mark.parametrize("factor", [1e-20, 1e-4, 1e4, 1e15])
def test_float32_keeps_its_digits_at_extreme_scales(factor: float) -> None:
    student, teacher = vectors(batch=8, student=64, dtype=torch.float32)
    exact = sp(student.detach().double(), teacher.double())
    value = sp(factor * student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_half_precision_is_brought_up_also_under_autocast() -> None:
    student, teacher = (x.detach().bfloat16() for x in vectors(batch=8, student=16))
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = sp(student, teacher)
    value.backward()
    assert value.dtype is torch.float32
    assert value.item() == sp(student.detach().float(), teacher.float()).item()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4, 3), (4,)), ((1, 3), (4, 3))])
def test_other_shapes_are_refused(shapes) -> None:
    with pytest.raises(ValueError, match="must be"):
        sp(*(torch.zeros(shape) for shape in shapes))


def test_term_flattens_maps_of_any_size_and_sums_over_stages() -> None:
    student, teacher = vectors(batch=5, student=4 * 2 * 2, teacher=3 * 4 * 4)
    maps = {"stage3": student.reshape(5, 4, 2, 2), "stage2": student.reshape(5, 1, 4, 4) ** 2}
    # The teacher is a transformer: six tokens and their width.
    tokens = {"stage4": teacher.reshape(5, 6, 8), "blocks.1": teacher.reshape(5, 6, 8) ** 2}
    both = SP(stages=[3, 2], teacher_stages=[4, "blocks.1"])
    assert both.student_features == ("stage3", "stage2")
    assert both.teacher_features == ("stage4", "blocks.1")
    assert SP().student_features == SP().teacher_features == ("final",)
    expected = sp(student, teacher) + sp(student**2, teacher**2)
    assert both(inputs(maps, tokens)).item() == pytest.approx(expected.item(), rel=1e-14)


def test_a_model_without_the_stage_is_refused_with_what_to_type() -> None:
    facts = RunFacts(10, 100, student=create_model("resnet8", 10), teacher=create_model("vgg8", 10))
    (sentence,) = SP(stages=[4]).refusals(facts)
    assert "stage4" in sentence
    assert "stages=[1,2,3]" in sentence
    assert SP().refusals(facts) == []
    assert SP(stages=[3], teacher_stages=[4]).refusals(facts) == []


def test_a_model_whose_head_averages_no_map_is_refused_with_what_to_type() -> None:
    transformer = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    facts = RunFacts(10, 100, student=transformer, teacher=create_model("vgg8", 10))
    (sentence,) = SP().refusals(facts)
    assert "student (Sequential)" in sentence
    assert "stages=[4] teacher_stages=[final]" in sentence
    assert SP(stages=["1"], teacher_stages=["final"]).refusals(facts) == []
    (sentence,) = SP().refusals(RunFacts(10, 100, student=create_model("vgg8", 10), teacher=transformer))
    assert "teacher (Sequential)" in sentence
    assert "stages=[final] teacher_stages=[4]" in sentence
