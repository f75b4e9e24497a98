from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from gda.distillers import ModelOutput, Progress, RunFacts, TermInputs
from gda.distillers.cc import CC, cc
from gda.models.tap_descriptions import TapDescription

Array = np.ndarray


def by_definition(student: Array, teacher: Array) -> float:
    products = [
        sum(abs(s - t) * abs(u - v) for s, t, u, v in zip(*rows, strict=True))
        for rows in zip(student[:-1], teacher[:-1], student[1:], teacher[1:], strict=True)
    ]
    return float(sum(products) / len(products))


def slope_of(function: Callable[[Array], float], at: Array, step: float = 1e-6) -> Array:
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        there, here = at.copy(), at.copy()
        there[index] += step
        here[index] -= step
        gradient[index] = (function(there) - function(here)) / (2 * step)
    return gradient


def embeddings(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(5, 4, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)
    )
    return student.requires_grad_(), teacher.requires_grad_()


def inputs(student: Tensor, teacher: Tensor) -> TermInputs:
    batch = len(student)
    return TermInputs(
        images=torch.zeros(batch, 3, 1, 1),
        targets=torch.full((batch, 2), 0.5),
        indices=torch.arange(batch),
        student=ModelOutput(torch.zeros(batch, 2), {"pooled": student}),
        teacher=ModelOutput(torch.zeros(batch, 2), {"pooled": teacher}),
        progress=Progress(0, 1),
        generator=torch.Generator(),
    )


def term_for(student: tuple[int, ...], teacher: tuple[int, ...], width: int = 8) -> CC:
    described = ({"pooled": TapDescription("", shape, None, True)} for shape in (student, teacher))
    term = CC(width)
    torch.manual_seed(0)
    term.setup(RunFacts(2, 10, None, *described))
    return term


def test_value_and_both_gradients_follow_the_definition() -> None:
    student, teacher = embeddings()
    loss = cc(student, teacher)
    loss.backward()
    ours, theirs = student.detach().numpy(), teacher.detach().numpy()
    assert loss.item() == pytest.approx(by_definition(ours, theirs), rel=1e-12)
    np.testing.assert_allclose(
        student.grad.numpy(), slope_of(lambda moved: by_definition(moved, theirs), ours), rtol=1e-6, atol=1e-9
    )
    np.testing.assert_allclose(teacher.grad.numpy(), -student.grad.numpy(), rtol=1e-12)


def test_gradient_agrees_with_finite_differences() -> None:
    assert torch.autograd.gradcheck(cc, embeddings())


def test_only_neighbours_meet_so_the_order_counts() -> None:
    student, teacher = (x.detach() for x in embeddings())
    order = torch.tensor([3, 0, 2, 1, 4])
    assert not torch.isclose(cc(student[order], teacher[order]), cc(student, teacher))
    backwards = cc(student.flip(0), teacher.flip(0))
    torch.testing.assert_close(backwards, cc(student, teacher), rtol=1e-12, atol=0)
    # The scale of all embeddings counts squared.
    torch.testing.assert_close(cc(3 * student, 3 * teacher), 9 * cc(student, teacher), rtol=1e-12, atol=0)
    torch.testing.assert_close(cc(student + 1, teacher + 1), cc(student, teacher), rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_is_zero_with_zero_gradient_at_equality_and_finite_far_from_it(scale: float) -> None:
    student, teacher = embeddings(torch.float32)
    value = cc(scale * student, scale * student.detach())
    (gradient,) = torch.autograd.grad(value, student)
    assert value.item() == 0
    assert gradient.abs().max() == 0
    value = cc(scale * student, scale * teacher)
    assert value.isfinite()
    assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_a_single_sample_has_no_neighbour() -> None:
    student = torch.ones(1, 3, requires_grad=True)
    value = cc(student, torch.zeros(1, 3))
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4, 3), (4, 2)), ((4,), (4,)), ((1, 3), (4, 3))])
def test_other_shapes_are_refused(shapes) -> None:
    with pytest.raises(ValueError, match="must both be"):
        cc(*(torch.zeros(shape) for shape in shapes))


def test_term_embeds_features_of_any_width_and_trains_both_embeddings() -> None:
    term = term_for((5,), (2, 2, 3))
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(4, 5, generator=generator, requires_grad=True)
    teacher = torch.randn(4, 2, 2, 3, generator=generator, requires_grad=True)
    value = term(inputs(student, teacher))
    value.backward()
    ours, theirs = (
        x.detach().numpy().reshape(4, -1) @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        for x, layer in ((student, term.student_embedding), (teacher, term.teacher_embedding))
    )
    assert value.item() == pytest.approx(by_definition(ours, theirs), rel=1e-5)
    assert all(parameter.grad.abs().max() > 0 for parameter in term.parameters())
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


def test_embeddings_are_128_wide_and_saved() -> None:
    assert CC().width == 128
    term, other = term_for((5,), (7,)), term_for((5,), (7,))
    assert set(term.state_dict()) == {
        f"{role}_embedding.{part}" for role in ("student", "teacher") for part in ("weight", "bias")
    }
    with torch.no_grad():
        term.student_embedding.weight.add_(1)
    batch = inputs(torch.ones(3, 5), torch.ones(3, 7))
    assert other(batch).item() != term(batch).item()
    other.load_state_dict(term.state_dict())
    assert other(batch).item() == term(batch).item()


def test_half_precision_is_brought_up_also_under_autocast() -> None:
    term = term_for((5,), (7,))
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(4, width, generator=generator).bfloat16() for width in (5, 7))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = term(inputs(student, teacher))
    assert value.dtype is torch.float32
    assert value.item() == term(inputs(student.float(), teacher.float())).item()
