"""FitNet with linear projectors against the figures of the published implementation.

Its stages are counted from the stem: 1 is the stem's map, 2 to 4 are stages 1 to 3 of a CIFAR ResNet here.
"""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gda.distillers import Distiller, ModelOutput, Progress, RunFacts, TermInputs
from gda.distillers.fitnet import FitNet
from gda.distillers.ground_truth import Labels
from gda.models import create_model
from gda.models.tap_descriptions import TapDescription, describe
from gda.models.taps import features

GOLDEN = Path(__file__).parent / "golden"
FIGURES = json.loads((GOLDEN / "losses_features.json").read_text())
ARRAYS = np.load(GOLDEN / "losses_features.npz")
CASES = FIGURES["fitnet"]
NETWORK = FIGURES["full_network"]["fitnet"]

PRECISIONS = ["float64", "float32"]
# Float32 figures are 1e-6 from the float64 ones; ten times that leaves room for other machines' kernels.
RTOL = {"float64": 1e-9, "float32": 1e-5}


def assert_digest(tensor: Tensor, digest: dict[str, Any], rtol: float) -> None:
    """Holds a tensor against its recorded sums and samples."""
    flat = tensor.detach().double().flatten()
    probe = torch.cos(0.7 * torch.arange(len(flat), dtype=torch.float64) + 0.3)
    scale = digest["abs_sum"]
    assert list(tensor.shape) == digest["shape"]
    assert flat.sum().item() == pytest.approx(digest["sum"], abs=rtol * scale)
    assert flat.abs().sum().item() == pytest.approx(scale, rel=rtol)
    assert flat.norm().item() == pytest.approx(digest["l2"], rel=rtol)
    assert flat.abs().max().item() == pytest.approx(digest["max_abs"], rel=rtol)
    assert (flat * probe).sum().item() == pytest.approx(digest["probe_dot"], abs=rtol * scale)
    assert flat[digest["sample_index"]].tolist() == pytest.approx(
        digest["sample"], rel=rtol, abs=rtol * digest["max_abs"]
    )


def inputs_of(student: ModelOutput, teacher: ModelOutput, labels: Tensor) -> TermInputs:
    return TermInputs(
        images=torch.zeros(len(labels), 3, 1, 1),
        targets=labels,
        indices=torch.arange(len(labels)),
        student=student,
        teacher=teacher,
        progress=Progress(36, 240),
        generator=torch.Generator(),
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_maps_of_a_case(case: str, precision: str) -> None:
    golden, record = CASES[case], CASES[case][precision]
    dtype, stages = getattr(torch, precision), golden["stages"]
    maps = {
        role: {f"stage{n}": torch.from_numpy(ARRAYS[f"{case}/{role}{n}"]).to(dtype) for n in stages}
        for role in ("student", "teacher")
    }
    for value in maps["student"].values():
        value.requires_grad_()
    known = [
        {name: TapDescription(name, tuple(value.shape[1:]), 1, True) for name, value in maps[role].items()}
        for role in ("student", "teacher")
    ]
    term = FitNet(stages, projector="linear")
    term.setup(RunFacts(5, golden["batch"], None, *known))
    for projector, n in zip(term.projectors, stages, strict=True):
        projector.weight = nn.Parameter(torch.from_numpy(ARRAYS[f"{case}/projector.{n}.weight"]))
    term.to(dtype)

    logits = torch.zeros(golden["batch"], 5, dtype=dtype)
    outputs = [ModelOutput(logits, maps[role]) for role in ("student", "teacher")]
    value = 2 * term(inputs_of(*outputs, torch.zeros(golden["batch"], dtype=torch.long)))
    assert value.dtype is dtype
    assert value.item() == pytest.approx(record["loss_fitnet(weight 2)"], rel=RTOL[precision])
    value.backward()
    for projector, n in zip(term.projectors, stages, strict=True):
        assert_digest(
            projector.weight.grad, record["grad_projector"][f"projector.{n}.weight"], RTOL[precision]
        )
        # Gradients of the maps are recorded in float32 only.
        digest = CASES[case]["float32"]["grad_student"][n - 1]
        assert_digest(maps["student"][f"stage{n}"].grad, digest, RTOL["float32"])


def seeded(text: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(text.encode()))


def make_weight(key: str, shape: tuple[int, ...], salt: str = "") -> Tensor:
    """The recipe ``unit_fan_in``."""
    generator, last = seeded(salt + key), key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if len(shape) >= 2:
        std = math.sqrt(1 / math.prod(shape[1:]))
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * std).float()
    if last in ("weight", "running_var"):
        return (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5).float()
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.1).float()


def network(name: str, salt: str = "") -> nn.Module:
    model = create_model(name, num_classes=100)
    state = model.state_dict()
    model.load_state_dict({key: make_weight(key, tuple(value.shape), salt) for key, value in state.items()})
    return model


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_training_step_of_whole_networks(precision: str) -> None:
    record, rtol, dtype = NETWORK[precision], RTOL[precision], getattr(torch, precision)
    student = network(NETWORK["student"]).to(dtype).train()
    teacher = network(NETWORK["teacher"], "teacher/").to(dtype).eval().requires_grad_(False)
    name, shape = NETWORK["input"]
    images = torch.randn(shape, generator=seeded("input:" + name), dtype=torch.float64).float().to(dtype)
    labels = torch.tensor(NETWORK["labels"])

    term = FitNet(["relu", 1, 2, 3], projector="linear")
    distiller = Distiller(Labels(), 1.0, {"fitnet": (term, 1.0)})
    described = [describe(model, term.student_features, 32) for model in (student, teacher)]
    distiller.setup(RunFacts(100, 4, None, *described, student=student, teacher=teacher))
    for projector, (key, shape) in zip(term.projectors, NETWORK["extra_state"], strict=True):
        assert list(projector.weight.shape) == shape
        projector.weight = nn.Parameter(make_weight(key, tuple(shape)))
    distiller.to(dtype)
    learnable = [sum(p.numel() for p in module.parameters()) for module in (student, distiller)]
    assert learnable == NETWORK["learnable_parameter_counts_student_extra"]

    outputs = []
    for model in (student, teacher):
        with features(model, term.student_features) as taps:
            outputs.append(ModelOutput(model(images), taps.collect()))
    total, values = distiller(inputs_of(*outputs, labels))
    assert_digest(outputs[0].logits, record["student_logits"], rtol)
    assert values["ground_truth"].item() == pytest.approx(record["loss_gt"], rel=rtol)
    assert values["fitnet"].item() == pytest.approx(record["loss_fitnet"], rel=rtol)
    assert total.item() == pytest.approx(record["total"], rel=rtol)

    total.backward()
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in student.parameters()))
    assert norm == pytest.approx(record["grad_l2_student"], rel=rtol)
    for projector, (key, digest) in zip(term.projectors, record["grad_extra"].items(), strict=True):
        assert key.startswith("projector.")
        assert_digest(projector.weight.grad, digest, rtol)
    if precision == "float64":
        gradients = {key: p.grad.norm().item() for key, p in student.named_parameters()}
        assert [key for key, _ in NETWORK["grad_l2_by_student_parameter_float64"]] == list(gradients)
        for key, expected in NETWORK["grad_l2_by_student_parameter_float64"]:
            assert gradients[key] == pytest.approx(expected, rel=rtol, abs=1e-9), key
