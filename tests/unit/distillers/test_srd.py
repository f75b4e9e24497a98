import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from gda.distillers import ModelOutput, Progress, RunFacts, TermInputs
from gda.distillers.srd import SRD, normalised, srd
from gda.models import create_model
from gda.models.tap_descriptions import TapDescription, describe
from gda.models.taps import features


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ready(student: tuple[int, ...] = (5,), teacher: tuple[int, ...] = (9,), **options: float) -> SRD:
    term = SRD(**options)
    known = [{"pooled": TapDescription("head", shape, None, True)} for shape in (student, teacher)]
    torch.manual_seed(0)
    term.setup(RunFacts(7, 10, None, *known))
    return term.double()


def given(
    student: Tensor,
    teacher: Tensor,
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor | None = None,
) -> TermInputs:
    batch = len(student)
    return TermInputs(
        images=torch.zeros(batch, 3, 1, 1),
        targets=torch.zeros(batch, dtype=torch.long) if targets is None else targets,
        indices=torch.arange(batch),
        student=ModelOutput(student_logits, {"pooled": student}),
        teacher=ModelOutput(teacher_logits, {"pooled": teacher}),
        progress=Progress(0, 1),
        generator=torch.Generator(),
    )


def batch_of(batch: int = 6) -> TermInputs:
    return given(
        rows(batch, 5).requires_grad_(),
        rows(batch, 9, seed=1).relu(),
        rows(batch, 7, seed=2).requires_grad_(),
        3 * rows(batch, 7, seed=3),
    )


def log_softmax(row: np.ndarray) -> np.ndarray:
    shifted = row - row.max()
    return shifted - math.log(np.exp(shifted).sum())


@pytest.mark.parametrize(("exponent", "factor", "temperature"), [(4.0, 2.0, 1.0), (3.0, 0.5, 4.0)])
def test_value_is_that_of_the_formula(exponent: float, factor: float, temperature: float) -> None:
    term = ready(exponent=exponent, feature_weight=factor, temperature=temperature)
    inputs = batch_of()
    assert inputs.teacher is not None
    z_s = inputs.student.features["pooled"].detach().numpy()
    z_t = inputs.teacher.features["pooled"].numpy()
    projected = np.array(
        [[float(row @ weights) for weights in term.projector.weight.detach().numpy()] for row in z_s]
    )
    total = 0.0
    for column in range(9):
        sides = []
        for values in (projected[:, column], z_t[:, column]):
            mean = sum(values) / 6
            variance = sum((value - mean) ** 2 for value in values) / 6
            sides.append([(value - mean) / math.sqrt(variance + 1e-4) for value in values])
        total += sum(abs(ours - theirs) ** exponent for ours, theirs in zip(*sides, strict=True))
    divergence = 0.0
    for ours, theirs in zip(
        inputs.student.logits.detach().numpy(), inputs.teacher.logits.numpy(), strict=True
    ):
        log_p, log_q = log_softmax(ours / temperature), log_softmax(theirs / temperature)
        divergence += temperature**2 * float((np.exp(log_q) * (log_q - log_p)).sum()) / 6
    assert term(inputs).item() == pytest.approx(factor * math.log(total) + divergence, rel=1e-12)


def test_gradient_is_that_of_the_formula() -> None:
    student, teacher = rows(3, 4).requires_grad_(), rows(3, 4, seed=1)
    srd(student, teacher, 4.0).backward()
    difference = student.detach().numpy() - teacher.numpy()
    np.testing.assert_allclose(
        student.grad.numpy(), 4 * difference**3 / (difference**4).sum(), rtol=1e-12, atol=1e-15
    )


def test_gradcheck() -> None:
    student, teacher = rows(3, 4).requires_grad_(), rows(3, 4, seed=1)
    for exponent in (2.0, 4.0, 30.0):
        assert torch.autograd.gradcheck(lambda s, e=exponent: srd(s, teacher, e), (student,))
    term = ready()
    inputs = batch_of(4)

    def value(features: Tensor, logits: Tensor) -> Tensor:
        return term(replace(inputs, student=ModelOutput(logits, {"pooled": features})))

    assert torch.autograd.gradcheck(value, (inputs.student.features["pooled"], inputs.student.logits))


def test_only_the_student_and_the_projector_learn() -> None:
    term = ready()
    inputs = batch_of()
    assert inputs.teacher is not None
    inputs.teacher.features["pooled"].requires_grad_()
    term(inputs).backward()
    assert inputs.teacher.features["pooled"].grad is None
    assert inputs.student.features["pooled"].grad.abs().max() > 0
    assert term.projector.weight.grad.abs().max() > 0
    assert [name for name, _ in term.named_parameters()] == ["projector.weight"]


def test_the_largest_difference_rules_at_a_high_exponent() -> None:
    student, teacher = rows(3, 4), rows(3, 4, seed=1)
    largest = (student - teacher).abs().max().item()
    assert srd(student, teacher, 200.0).item() / 200 == pytest.approx(math.log(largest), abs=0.01)


def test_scale_and_shift_of_a_feature_of_the_teacher_do_not_matter() -> None:
    """But for the smallest variance, which is 1e-4 here, as published."""
    term = ready()
    inputs = batch_of()
    assert inputs.teacher is not None
    teacher = 1e3 * inputs.teacher.features["pooled"]
    value = term(replace(inputs, teacher=replace(inputs.teacher, features={"pooled": teacher})))
    moved = teacher * torch.linspace(1, 5, 9) + torch.linspace(-300, 800, 9)
    again = term(replace(inputs, teacher=replace(inputs.teacher, features={"pooled": moved})))
    assert again.item() == pytest.approx(value.item(), rel=1e-8)


def test_the_order_of_samples_does_not_matter_but_their_pairing_does() -> None:
    term = ready()
    inputs = batch_of()
    assert inputs.teacher is not None
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    sides = [
        ModelOutput(side.logits[order], {"pooled": side.features["pooled"][order]})
        for side in (inputs.student, inputs.teacher)
    ]
    value = term(inputs).item()
    assert term(replace(inputs, student=sides[0], teacher=sides[1])).item() == pytest.approx(value, rel=1e-12)
    assert term(replace(inputs, student=sides[0])).item() != pytest.approx(value, rel=1e-3)


def test_classes_may_come_in_any_order_and_targets_are_not_read() -> None:
    term = ready()
    inputs = batch_of()
    assert inputs.teacher is not None
    order = torch.tensor([6, 2, 0, 1, 5, 3, 4])
    value = term(inputs)
    turned = replace(
        inputs,
        student=replace(inputs.student, logits=inputs.student.logits[:, order]),
        teacher=replace(inputs.teacher, logits=inputs.teacher.logits[:, order]),
        targets=torch.full((6, 7), float("nan")),
    )
    assert term(turned).item() == pytest.approx(value.item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_features_that_are_reached_have_the_smallest_value_and_no_gradient(dtype: torch.dtype) -> None:
    teacher = rows(4, 3).to(dtype)
    for offset in (0.0, 2e-5):
        student = (teacher + offset).requires_grad_()
        value = srd(student, teacher, 4.0)
        value.backward()
        assert value.item() == pytest.approx(4 * math.log(1e-4))
        assert student.grad.abs().max() == 0
    assert srd(teacher + 1e-2, teacher, 4.0) > value


@pytest.mark.parametrize("scale", [0.0, 1e4])
@pytest.mark.parametrize("exponent", [1.0, 4.0, 40.0])
def test_extreme_features_and_logits_have_finite_values_and_gradients(exponent: float, scale: float) -> None:
    term = ready(exponent=exponent).float()
    leaves = [(scale * rows(6, width, seed=width)).float().requires_grad_() for width in (5, 9, 7)]
    value = term(given(leaves[0], leaves[1], leaves[2], -leaves[2].detach()))
    value.backward()
    assert value.isfinite()
    assert all(leaf.grad.isfinite().all() for leaf in (leaves[0], leaves[2], term.projector.weight))
    raw = (scale * rows(4, 3)).float().requires_grad_()
    value = srd(raw, -raw, exponent)
    value.backward()
    assert value.isfinite()
    assert raw.grad.isfinite().all()


def test_half_precision_features_are_compared_in_float32() -> None:
    term = ready().float()
    inputs = batch_of(32)
    assert inputs.teacher is not None
    value = term(
        given(
            *(
                each.detach().float()
                for each in (
                    inputs.student.features["pooled"],
                    inputs.teacher.features["pooled"],
                    inputs.student.logits,
                    inputs.teacher.logits,
                )
            )
        )
    )
    student = inputs.student.features["pooled"].detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = term(
            given(
                student,
                inputs.teacher.features["pooled"].bfloat16(),
                inputs.student.logits.detach().float(),
                inputs.teacher.logits.float(),
            )
        )
    assert rounded.dtype is torch.float32
    assert rounded.item() == pytest.approx(value.item(), rel=0.01)
    rounded.backward()
    assert student.grad.isfinite().all()


def test_normalised_features_have_mean_0_and_variance_1() -> None:
    values = normalised(3 + 5 * rows(50, 4))
    np.testing.assert_allclose(values.mean(dim=0).numpy(), 0, atol=1e-12)
    np.testing.assert_allclose(values.var(dim=0, unbiased=False).numpy(), 1, rtol=1e-4)
    assert torch.equal(normalised(torch.full((3, 2), 7.0)), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="more than 1 value"):
        normalised(rows(1, 4))


@pytest.mark.parametrize("names", [("resnet8", "resnet8x4"), ("vgg8", "wrn_16_1")])
def test_widths_come_from_the_models(names: tuple[str, str]) -> None:
    models = [create_model(name, num_classes=5) for name in names]
    term = SRD()
    known = [describe(model, term.student_features, 16) for model in models]
    facts = RunFacts(5, 10, None, *known, student=models[0], teacher=models[1])
    assert term.refusals(facts) == []
    term.setup(facts)
    outputs = []
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for model in models:
        with features(model, term.student_features) as tapped:
            outputs.append(ModelOutput(model(images), tapped.collect()))
    inputs = given(torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4, 1))
    value = term(replace(inputs, student=outputs[0], teacher=outputs[1]))
    value.backward()
    assert value.isfinite()
    assert all(p.grad is None for p in models[1].parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in models[0].parameters())


def test_its_state_travels_in_the_checkpoint() -> None:
    inputs = batch_of()
    first, second = ready(), ready()
    torch.nn.init.normal_(first.projector.weight)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(inputs), second(inputs))


def test_features_of_different_shape_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match="one width"):
        srd(rows(3, 4), rows(3, 1))
    with pytest.raises(ValueError, match="one batch"):
        srd(rows(3, 4), rows(1, 4))
