import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gda.distillers import ModelOutput, Progress, RunFacts, TermInputs
from gda.distillers.fitnet import FitNet, fitnet
from gda.models.tap_descriptions import TapDescription


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ready(projector: str, student: tuple[int, ...], teacher: tuple[int, ...]) -> FitNet:
    """A term for one pair of maps."""
    torch.manual_seed(0)
    term = FitNet(stages=[2], projector=projector)
    ours, theirs = TapDescription("a", student, 1, True), TapDescription("b", teacher, 1, True)
    term.setup(RunFacts(10, 10, None, {"stage2": ours}, {"stage2": theirs}))
    return term.double()


def inputs_of(student: Tensor, teacher: Tensor) -> TermInputs:
    logits = torch.zeros(len(student), 10)
    return TermInputs(
        images=torch.zeros(len(student), 3, 1, 1),
        targets=torch.zeros(len(student), dtype=torch.long),
        indices=torch.arange(len(student)),
        student=ModelOutput(logits, {"stage2": student}),
        teacher=ModelOutput(logits, {"stage2": teacher}),
        progress=Progress(0, 1),
        generator=torch.Generator(),
    )


def test_value_and_gradients_of_the_linear_projector_are_those_of_the_formula() -> None:
    term = ready("linear", (3, 2, 2), (5, 2, 2))
    student, teacher = maps(2, 3, 2, 2).requires_grad_(), maps(2, 5, 2, 2, seed=1)
    value = term(inputs_of(student, teacher))
    value.backward()
    weight = term.projectors[0].weight
    w, s, t = weight.detach().numpy()[:, :, 0, 0], student.detach().numpy(), teacher.numpy()
    total, by_student, by_weight = 0.0, np.zeros_like(s), np.zeros_like(w)
    for b, y, x in np.ndindex(2, 2, 2):
        for out in range(5):
            error = sum(w[out, c] * s[b, c, y, x] for c in range(3)) - t[b, out, y, x]
            total += error**2 / t.size
            for c in range(3):
                by_student[b, c, y, x] += 2 * error * w[out, c] / t.size
                by_weight[out, c] += 2 * error * s[b, c, y, x] / t.size
    assert value.item() == pytest.approx(total, rel=1e-12)
    np.testing.assert_allclose(student.grad.numpy(), by_student, rtol=1e-10)
    np.testing.assert_allclose(weight.grad.numpy()[:, :, 0, 0], by_weight, rtol=1e-10)


def test_value_of_the_activated_projector_is_that_of_the_formula() -> None:
    term = ready("conv_bn_relu", (3, 2, 2), (5, 2, 2))
    convolution, norm, _ = term.projectors[0]
    nn.init.uniform_(norm.weight)
    nn.init.normal_(norm.bias)
    student, teacher = maps(2, 3, 2, 2), maps(2, 5, 2, 2, seed=1)
    w, bias = convolution.weight.detach().numpy()[:, :, 0, 0], convolution.bias.detach().numpy()
    s, t = student.numpy(), teacher.numpy()
    total = 0.0
    for out in range(5):
        z = np.array([[w[out] @ s[b, :, y, x] + bias[out] for y, x in np.ndindex(2, 2)] for b in range(2)])
        z = (z - z.mean()) / np.sqrt(z.var() + norm.eps)
        z = np.maximum(norm.weight[out].item() * z + norm.bias[out].item(), 0)
        total += ((z - t[:, out].reshape(2, 4)) ** 2).sum() / t.size
    assert term(inputs_of(student, teacher)).item() == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize("projector", ["linear", "conv_bn_relu"])
def test_gradcheck(projector: str) -> None:
    term = ready(projector, (3, 2, 2), (4, 2, 2))
    student, teacher = maps(3, 3, 2, 2).requires_grad_(), maps(3, 4, 2, 2, seed=1)
    assert torch.autograd.gradcheck(lambda s: term(inputs_of(s, teacher)), (student,))


def test_a_linear_projection_and_pooling_commute() -> None:
    """The student's larger map is pooled before it is projected, with the same result as after."""
    term = ready("linear", (3, 4, 4), (5, 2, 2))
    student, teacher = maps(2, 3, 4, 4), maps(2, 5, 2, 2, seed=1)
    after = nn.functional.adaptive_avg_pool2d(term.projectors[0](student), 2)
    torch.testing.assert_close(term(inputs_of(student, teacher)), (after - teacher).square().mean())


def test_a_larger_map_of_the_teacher_is_pooled_too() -> None:
    term = ready("linear", (3, 2, 2), (5, 4, 4))
    student, teacher = maps(2, 3, 2, 2), maps(2, 5, 4, 4, seed=1)
    blocks = teacher.reshape(2, 5, 2, 2, 2, 2).mean(dim=(3, 5))
    expected = (term.projectors[0](student) - blocks).square().mean()
    torch.testing.assert_close(term(inputs_of(student, teacher)), expected)


def test_vectors_are_hints_as_well() -> None:
    term = ready("linear", (3,), (5,))
    student, teacher = maps(2, 3), maps(2, 5, seed=1)
    expected = (student @ term.projectors[0].weight[:, :, 0, 0].T - teacher).square().mean()
    torch.testing.assert_close(term(inputs_of(student, teacher)), expected)


def test_is_zero_at_equality_and_finite_at_extremes() -> None:
    one = maps(2, 3, 2, 2).float().requires_grad_()
    assert fitnet(one, one).item() == 0
    value = fitnet(1e4 * one, -1e4 * one)
    value.backward()
    assert value.isfinite()
    assert one.grad.isfinite().all()


def test_no_gradient_flows_into_the_teacher() -> None:
    student, teacher = maps(2, 3, 2, 2).requires_grad_(), maps(2, 3, 2, 2, seed=1).requires_grad_()
    fitnet(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_maps_of_different_shape_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match="one shape"):
        fitnet(maps(2, 3, 2, 2), maps(2, 3, 1, 1))
