"""Relational distillation against the figures of the published implementation.

What is not compared: the gradient at coincident points, which is a number of order 1e10 in the published
code (it divides a vector of zeros by 1e-12), and the value of a batch of one image, which is NaN there.
Ours must be finite; the unit tests say what it is.
"""

import functools
import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gda.distillers import Distiller, ModelOutput, Progress, TermInputs
from gda.distillers.ground_truth import Labels
from gda.distillers.rkd import RKDAngle, RKDDistance, rkd_angle, rkd_distance
from gda.models import create_model
from gda.models.taps import features

GOLDEN = Path(__file__).parent / "golden"
FIGURES = json.loads((GOLDEN / "losses_features.json").read_text())
ARRAYS = np.load(GOLDEN / "losses_features.npz")
CASES, SETTINGS = FIGURES["rkd"], FIGURES["settings"]

VALUE_RTOL = {"float64": 1e-12, "float32": 2e-6}
GRAD_RTOL = {"float64": 1e-11, "float32": 2e-6}

cases = pytest.mark.parametrize("case", CASES)
squared_or_not = pytest.mark.parametrize("squared", [False, True])
precisions = pytest.mark.parametrize("precision", VALUE_RTOL)


def losses(student: Tensor, teacher: Tensor, squared: bool) -> dict[str, Tensor]:
    distance, angle = rkd_distance(student, teacher, squared), rkd_angle(student, teacher)
    both = SETTINGS["rkd_distance_weight"] * distance + SETTINGS["rkd_angle_weight"] * angle
    return {"distance": distance, "angle": angle, "both": both}


def features_of(case: str, precision: str) -> tuple[Tensor, Tensor]:
    dtype = getattr(torch, precision)
    student, teacher = (
        torch.from_numpy(ARRAYS[f"{case}/{role}"]).to(dtype) for role in ("student", "teacher")
    )
    return student.requires_grad_(), teacher


@precisions
@squared_or_not
@cases
def test_value(case: str, squared: bool, precision: str) -> None:
    record = CASES[case][f"squared={squared},{precision}"]
    for name, loss in losses(*features_of(case, precision), squared).items():
        golden = record[name]["value"]
        # Where the published code has no number, ours is 0.
        expected = 0.0 if golden == "nan" else golden
        assert loss.item() == pytest.approx(expected, rel=VALUE_RTOL[precision], abs=0), name


@precisions
@squared_or_not
@cases
def test_gradient(case: str, squared: bool, precision: str) -> None:
    student, teacher = features_of(case, precision)
    (gradient,) = torch.autograd.grad(losses(student, teacher, squared)["both"], student)
    assert gradient.isfinite().all()
    golden = ARRAYS[f"{case}/grad64/squared={squared}"]
    points = ARRAYS[f"{case}/student"]
    alone = [(points == point).all(axis=1).sum() == 1 for point in points]
    assert sum(alone) == (4 if "duplicate" in case else len(points))
    error = np.linalg.norm((gradient.double().numpy() - golden)[alone])
    assert error <= GRAD_RTOL[precision] * np.linalg.norm(golden[alone])


@precisions
@squared_or_not
@pytest.mark.parametrize("case", [case for case in CASES if "duplicate" not in case])
def test_gradient_of_each_part(case: str, squared: bool, precision: str) -> None:
    """Only digests are stored of these."""
    student, teacher = features_of(case, precision)
    parts = losses(student, teacher, squared)
    for name in ("distance", "angle"):
        (gradient,) = torch.autograd.grad(parts[name], student)
        digest = CASES[case][f"squared={squared},{precision}"][name]["grad"]
        flat = gradient.double().numpy().ravel()
        scale = GRAD_RTOL[precision] * digest["l2"]
        assert abs(np.linalg.norm(flat) - digest["l2"]) <= scale
        probe = np.cos(0.7 * np.arange(flat.size) + 0.3)
        assert abs(flat @ probe - digest["probe_dot"]) <= scale * np.linalg.norm(probe)
        assert np.abs(flat[digest["sample_index"]] - digest["sample"]).max() <= scale


def seeded(text: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(text.encode()))


def network(name: str, salt: str = "") -> nn.Module:
    """The recipe of the golden README, ``unit_fan_in``."""
    model = create_model(name, num_classes=100)
    weights = {}
    for key, value in model.state_dict().items():
        generator, last = seeded(salt + key), key.rsplit(".", 1)[-1]
        draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
        if last == "num_batches_tracked":
            weights[key] = torch.zeros_like(value)
        elif value.dim() >= 2:
            weights[key] = (draw(value.shape) * math.sqrt(1 / math.prod(value.shape[1:]))).float()
        elif last in ("weight", "running_var"):
            weights[key] = (torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5).float()
        else:
            weights[key] = (draw(value.shape) * 0.1).float()
    model.load_state_dict(weights)
    return model


@precisions
def test_both_terms_on_whole_networks(precision: str) -> None:
    record = FIGURES["full_network"]["rkd"]
    golden = record[precision]
    dtype = getattr(torch, precision)
    student = network(record["student"]).to(dtype).train()
    teacher = network(record["teacher"], "teacher/").to(dtype).eval()
    name, shape = record["input"]
    images = torch.randn(shape, generator=seeded("input:" + name), dtype=torch.float64).float().to(dtype)
    distiller = Distiller(
        Labels(),
        SETTINGS["gt_loss_weight"],
        {
            "rkd_distance": (RKDDistance(), SETTINGS["rkd_distance_weight"]),
            "rkd_angle": (RKDAngle(), SETTINGS["rkd_angle_weight"]),
        },
    )
    student_taps = features(student, distiller.student_features)
    teacher_taps = features(teacher, distiller.teacher_features)
    with torch.no_grad():
        taught = ModelOutput(teacher(images), teacher_taps.collect())
    inputs = TermInputs(
        images=images,
        targets=torch.tensor(record["labels"]),
        indices=torch.arange(len(images)),
        student=ModelOutput(student(images), student_taps.collect()),
        teacher=taught,
        progress=Progress(36, 240),
        generator=torch.Generator(),
    )
    total, values = distiller(inputs)
    total.backward()

    # Through twenty layers, float32 is reproducible to about what separates the golden figures of both
    # precisions, 2e-4; in float64 it is a matter of rounding.
    value_rtol, grad_rtol = {"float64": (1e-10, 1e-9), "float32": (5e-4, 5e-4)}[precision]
    assert values["ground_truth"].item() == pytest.approx(golden["loss_gt"], rel=value_rtol)
    rkd = 25 * values["rkd_distance"] + 50 * values["rkd_angle"]
    assert rkd.item() == pytest.approx(golden["loss_kd"], rel=value_rtol)
    assert total.item() == pytest.approx(golden["total"], rel=value_rtol)
    norms = {key: parameter.grad.norm().item() for key, parameter in student.named_parameters()}
    assert math.hypot(*norms.values()) == pytest.approx(golden["grad_l2_student"], rel=grad_rtol)
    if precision == "float64":
        assert norms == pytest.approx(dict(record["grad_l2_by_student_parameter_float64"]), rel=grad_rtol)
