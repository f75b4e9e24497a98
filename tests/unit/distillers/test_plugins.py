"""The plug-ins against their formulas, written once more in NumPy, and what they do to the terms."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gda.distillers import Distiller, ModelOutput, Progress, RunFacts, Term, TermInputs, View
from gda.distillers.ctkd import CurriculumTemperature
from gda.distillers.dkd import DKD
from gda.distillers.functional import dkd, kd
from gda.distillers.ground_truth import Labels
from gda.distillers.kd import KD
from gda.distillers.lskd import LogitStandardization, standardised
from gda.distillers.sdd import ScaleDecoupling, region_vectors
from gda.errors import UserError
from gda.models import create_model, describe, features

Make = Callable[..., TermInputs]


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def numpy_kd(student: np.ndarray, teacher: np.ndarray, temperature: float) -> np.ndarray:
    """T^2 KL(teacher || student) of each row."""
    rows = []
    for s, t in zip(student, teacher, strict=True):
        p, q = softmax(s / temperature), softmax(t / temperature)
        rows.append(temperature**2 * float((q * (np.log(q) - np.log(p))).sum()))
    return np.array(rows)


# --- LSKD


def test_lskd_is_the_loss_of_z_scores(logits: Callable[..., Any], inputs: Make) -> None:
    student, teacher = logits(batch=6, classes=5)
    distiller = Distiller(Labels(), 0.0, {"kd": (KD(4.0), 1.0)}, {"lskd": LogitStandardization(2.0)})
    total, _ = distiller(inputs(student, teacher))

    def z_scored(values: Tensor) -> np.ndarray:
        rows = values.detach().numpy()
        return (rows - rows.mean(1, keepdims=True)) / (rows.std(1, ddof=1, keepdims=True) + 1e-7)

    expected = numpy_kd(z_scored(student), z_scored(teacher), 2.0).mean()
    assert total.item() == pytest.approx(expected, rel=1e-12)


def test_lskd_does_not_see_shift_and_scale(logits: Callable[..., Any], inputs: Make) -> None:
    student, teacher = logits()
    distiller = Distiller(Labels(), 0.0, {"dkd": (DKD(), 1.0)}, {"lskd": LogitStandardization()})
    value = distiller(inputs(student, teacher))[0].item()
    assert distiller(inputs(3 * student + 7, 0.5 * teacher - 2))[0].item() == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_lskd_is_finite_for_constant_and_extreme_rows(dtype: torch.dtype, inputs: Make) -> None:
    student = torch.tensor([[1.0, 1, 1], [1e4, -1e4, 0], [0, 1, 2]], dtype=dtype).requires_grad_()
    teacher = torch.tensor([[0.0, 1, 2], [-1e4, 1e4, 0], [5, 5, 5]], dtype=dtype)
    distiller = Distiller(Labels(), 0.0, {"kd": (KD(), 1.0)}, {"lskd": LogitStandardization()})
    total, _ = distiller(inputs(student, teacher))
    total.backward()
    assert total.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert torch.equal(standardised(teacher)[2], torch.zeros(3, dtype=dtype))


def test_lskd_standardises_views_and_leaves_other_terms_alone(
    logits: Callable[..., Any], inputs: Make
) -> None:
    seen: dict[str, TermInputs] = {}

    class Probe(Term):
        def __init__(self, name: str, plugins: bool) -> None:
            super().__init__()
            self.name = name
            self.takes_plugins = plugins  # type: ignore[misc]

        def forward(self, inputs: TermInputs) -> Tensor:
            seen[self.name] = inputs
            return inputs.student.logits.sum()

    student, teacher = logits()
    terms = {name: (Probe(name, plugins), 1.0) for name, plugins in (("logit", True), ("other", False))}
    view = View(torch.zeros(1), ModelOutput(2 * student), ModelOutput(3 * teacher))
    given = replace(inputs(student, teacher), views={"strong": view})
    Distiller(Labels(), 0.0, terms, {"lskd": LogitStandardization(3.0)})(given)
    assert seen["other"].student.logits is student
    assert seen["other"].temperature is None
    assert seen["logit"].temperature == 3.0
    torch.testing.assert_close(seen["logit"].student.logits, standardised(student))
    torch.testing.assert_close(seen["logit"].views["strong"].student.logits, standardised(2 * student))
    changed = seen["logit"].views["strong"].teacher
    assert changed is not None
    torch.testing.assert_close(changed.logits, standardised(3 * teacher))


# --- CTKD


def test_ctkd_trains_the_temperature_against_the_loss(logits: Callable[..., Any], inputs: Make) -> None:
    student, teacher = logits(classes=5)
    plugin = CurriculumTemperature(start=1.0, span=20.0, epochs=10).double()
    distiller = Distiller(Labels(), 0.0, {"kd": (KD(4.0), 1.0)}, {"ctkd": plugin})
    total, _ = distiller(inputs(student, teacher, progress=Progress(3, 240)))
    total.backward()

    def loss_at(raw: float) -> float:
        temperature = 1 + 20 / (1 + math.exp(-raw))
        return float(numpy_kd(student.detach().numpy(), teacher.numpy(), temperature).mean())

    assert total.item() == pytest.approx(loss_at(1.0), rel=1e-12)
    slope = (loss_at(1 + 1e-5) - loss_at(1 - 1e-5)) / 2e-5
    factor = (math.cos(4 * math.pi / 10) + 1) / 2 * (0 - -1) + -1  # epoch 4 of 10, from 0 to -1
    assert plugin.raw_temperature.grad is not None
    assert plugin.raw_temperature.grad.item() == pytest.approx(factor * slope, rel=1e-6)
    assert factor < 0


def test_ctkd_reversal_goes_from_nearly_nothing_to_all() -> None:
    plugin = CurriculumTemperature(epochs=10)
    factors = [plugin.reversal(Progress(epoch, 240)) for epoch in range(12)]
    assert factors[0] == pytest.approx(-(1 - math.cos(math.pi / 10)) / 2)
    assert factors == sorted(factors, reverse=True)
    assert factors[9:] == [-1, -1, -1]


def test_ctkd_serves_dkd_and_lskd_and_is_in_the_checkpoint(logits: Callable[..., Any], inputs: Make) -> None:
    student, teacher = logits()
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    plugins = {"ctkd": CurriculumTemperature(), "lskd": LogitStandardization(2.0)}
    distiller = Distiller(Labels(), 0.0, {"dkd": (DKD(1.0, 8.0, 4.0), 1.0)}, plugins)
    temperature = 1 + 20 / (1 + math.exp(-1))
    expected = dkd(standardised(student), standardised(teacher), labels, 1.0, 8.0, temperature)
    total, _ = distiller(inputs(student, teacher, labels))
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert list(distiller.state_dict()) == ["plugins.ctkd.raw_temperature"]


# --- SDD


@pytest.fixture
def pair() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "student": create_model("resnet8", 5).double().eval(),
        "teacher": create_model("vgg8", 5).double().eval(),
    }


def tapped(model: nn.Module, images: Tensor) -> ModelOutput:
    with features(model, ["final"]) as taps:
        logits = model(images)
        return ModelOutput(logits, taps.collect())


def set_up(plugin: ScaleDecoupling, pair: dict[str, nn.Module], size: int) -> None:
    described = {role: describe(model, ["final"], size) for role, model in pair.items()}
    facts = RunFacts(5, 10, None, described["student"], described["teacher"], **pair)
    assert plugin.refusals(facts) == []
    plugin.setup(facts)


@pytest.mark.parametrize("soft", [False, True])
def test_sdd_is_the_weighted_loss_of_all_regions(
    pair: dict[str, nn.Module], soft: bool, inputs: Make
) -> None:
    draws = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 32, 32, generator=draws, dtype=torch.float64)
    student, teacher = tapped(pair["student"], images), tapped(pair["teacher"], images)
    labels = torch.stack([teacher.logits[0].argmax(), *(torch.tensor(k) for k in (1, 2, 3))])
    targets = nn.functional.one_hot(labels, 5).double() * 0.7 + 0.06 if soft else labels
    plugin = ScaleDecoupling([1, 2, 4], 2.0)
    set_up(plugin, pair, 32)
    distiller = Distiller(Labels(), 0.0, {"kd": (KD(4.0), 1.0)}, {"sdd": plugin})
    given = replace(inputs(student.logits, teacher.logits, targets), student=student, teacher=teacher)
    total, _ = distiller(given)

    rows, complementary = [], 0
    for scale in (1, 2, 4):
        for down in range(scale):
            for across in range(scale):
                regions = []
                for role, output in (("student", student), ("teacher", teacher)):
                    maps = output.features["final"].detach().numpy()
                    step = maps.shape[2] // scale
                    if step == 0:  # a region smaller than a pixel is the pixel that it lies in
                        y, x = down * maps.shape[2] // scale, across * maps.shape[3] // scale
                        vectors = maps[:, :, y, x]
                    else:
                        window = maps[
                            :, :, down * step : (down + 1) * step, across * step : (across + 1) * step
                        ]
                        vectors = window.mean((2, 3))
                    head = pair[role].fc if role == "student" else pair[role].classifier
                    regions.append(vectors @ head.weight.detach().numpy().T + head.bias.detach().numpy())
                losses = numpy_kd(regions[0], regions[1], 4.0)
                for i in range(4):
                    right = regions[1][i].argmax() == labels[i].item()
                    right_of_image = teacher.logits[i].argmax().item() == labels[i].item()
                    complementary += right != right_of_image
                    rows.append(losses[i] * (2.0 if right != right_of_image else 1.0))
    assert complementary > 0
    assert total.item() == pytest.approx(float(np.mean(rows)), rel=1e-9)
    total.backward()
    gradient = pair["student"].conv1.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_sdd_at_scale_1_is_the_base_loss_and_keeps_no_head(pair: dict[str, nn.Module], inputs: Make) -> None:
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    student, teacher = tapped(pair["student"], images), tapped(pair["teacher"], images)
    plugin = ScaleDecoupling([1], 2.0)
    set_up(plugin, pair, 16)
    given = replace(inputs(student.logits, teacher.logits), student=student, teacher=teacher)
    distiller = Distiller(Labels(), 0.0, {"kd": (KD(3.0), 1.0)}, {"sdd": plugin})
    assert distiller(given)[0].item() == pytest.approx(
        kd(student.logits, teacher.logits, 3.0).item(), rel=1e-12
    )
    assert list(distiller.parameters()) == []
    assert list(distiller.state_dict()) == []


def test_regions_of_uneven_maps_overlap_as_pooling_has_it() -> None:
    feature_map = torch.arange(49.0).reshape(1, 1, 7, 7)
    vectors = region_vectors(feature_map, [1, 2])
    assert vectors.flatten().tolist() == [24.0, 12.0, 15.0, 33.0, 36.0]


def test_sdd_refuses_models_without_a_linear_head_on_a_map(pair: dict[str, nn.Module]) -> None:
    encoder = create_model("resnet12_bottle", None).double()
    described = describe(encoder, ["final"], 32)
    plugin = ScaleDecoupling()
    facts = RunFacts(
        5, 10, None, described, describe(pair["teacher"], ["final"], 32), encoder, pair["teacher"]
    )
    assert "no linear head" in plugin.refusals(facts)[0]
    stage = ScaleDecoupling(student_map="stage2")
    taps = describe(pair["student"], ["stage2"], 32)
    facts = RunFacts(
        5, 10, None, taps, describe(pair["teacher"], ["final"], 32), pair["student"], pair["teacher"]
    )
    assert "32 channels where its head takes 64" in stage.refusals(facts)[0]
    with pytest.raises(ValueError, match="scales"):
        ScaleDecoupling([])


def test_sdd_notices_what_lies_between_map_and_head(pair: dict[str, nn.Module]) -> None:
    normed = create_model("timm/convnext_atto", 5)
    pooled_map = "head.global_pool:input"
    described = describe(normed, [pooled_map], 64)
    facts = RunFacts(
        5, 10, None, described, describe(pair["teacher"], ["final"], 32), normed, pair["teacher"]
    )
    (refusal,) = ScaleDecoupling().refusals(facts)
    assert "the head of ConvNeXt is not given the average of a map; plugin=lskd" in refusal
    forced = ScaleDecoupling(student_map=pooled_map)
    assert forced.refusals(facts) == []
    with pytest.raises(UserError, match="something lies between"):
        forced.setup(facts)
