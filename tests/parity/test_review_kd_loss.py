"""Knowledge review against the figures of the published implementation.

Its fusion modules are ``abfs.0`` for the deepest level to ``abfs.4`` for the shallowest, the stem's map; it
compares maps behind their last activation.
"""

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gda.distillers import Distiller, ModelOutput, Progress, RunFacts, TermInputs
from gda.distillers.ground_truth import Labels
from gda.distillers.review_kd import AttentionFusion, ReviewKD, hcl
from gda.models import create_model
from gda.models.tap_descriptions import describe
from gda.models.taps import features

GOLDEN = Path(__file__).parent / "golden"
FIGURES = json.loads((GOLDEN / "losses_features.json").read_text())
ARRAYS = np.load(GOLDEN / "losses_features.npz")
CONTEXT = FIGURES["reviewkd_hcl"]
FUSION = FIGURES["reviewkd_fusion_block"]
NETWORK = FIGURES["full_network"]["reviewkd"]

PRECISIONS = ["float64", "float32"]
RTOL = {"float64": 1e-9, "float32": 1e-5}
# Gradients went through training-mode batch norm, which leaves sums that are 0 but for rounding.
NETWORK_RTOL = {"float64": 1e-8, "float32": 1e-4}

PUBLISHED_NAMES = {"transform": "conv1", "output": "conv2", "attention": "att_conv.0"}


def seeded(text: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(text.encode()))


def make_input(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=seeded("input:" + name), dtype=torch.float64).float()


def make_weight(key: str, shape: tuple[int, ...], variance: float, salt: str = "") -> Tensor:
    """One entry of a state by the recorded recipe.

    Args:
        key: Its published name.
        shape: Its shape.
        variance: Of a matrix's products with inputs of variance 1.
        salt: What tells two networks apart.
    """
    generator, last = seeded(salt + key), key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if len(shape) >= 2:
        std = math.sqrt(variance / math.prod(shape[1:]))
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * std).float()
    if last in ("weight", "running_var"):
        return (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5).float()
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.1).float()


def published(name: str) -> str:
    """The published name of one of a fusion module's parameters and buffers; other names stay."""
    first, _, rest = name.partition(".")
    return f"{PUBLISHED_NAMES.get(first, first)}.{rest}"


def load(module: nn.Module, variance: float, prefix: str = "", salt: str = "") -> None:
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    module.load_state_dict(
        {name: make_weight(prefix + published(name), shapes[name], variance, salt) for name in shapes}
    )


def probe(tensor: Tensor) -> Tensor:
    steps = torch.arange(tensor.numel(), dtype=torch.float64)
    return torch.cos(0.7 * steps + 0.3).to(tensor.dtype).reshape(tensor.shape)


def assert_digest(tensor: Tensor, digest: Mapping[str, Any], rtol: float, atol: float = 0.0) -> None:
    """Holds a tensor against its recorded sums and samples; ``atol`` is for each of its values."""
    flat = tensor.detach().double().flatten()
    scale = digest["abs_sum"]
    error = rtol * scale + atol * len(flat)
    assert list(tensor.shape) == digest["shape"]
    assert flat.sum().item() == pytest.approx(digest["sum"], abs=error)
    assert flat.abs().sum().item() == pytest.approx(scale, abs=error)
    assert flat.norm().item() == pytest.approx(digest["l2"], rel=rtol, abs=atol * math.sqrt(len(flat)))
    assert flat.abs().max().item() == pytest.approx(digest["max_abs"], rel=rtol, abs=atol)
    assert (flat * probe(flat)).sum().item() == pytest.approx(digest["probe_dot"], abs=error)
    assert flat[digest["sample_index"]].tolist() == pytest.approx(
        digest["sample"], rel=rtol, abs=rtol * digest["max_abs"] + atol
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CONTEXT)
def test_hierarchical_context_loss(case: str, precision: str) -> None:
    record, dtype = CONTEXT[case][precision], getattr(torch, precision)
    levels = range(len(CONTEXT[case]["shapes"]))
    student, teacher = (
        [torch.from_numpy(ARRAYS[f"{case}/{role}{level}"]).to(dtype) for level in levels]
        for role in ("student", "teacher")
    )
    for each in student:
        each.requires_grad_()
    values = [hcl(ours, theirs) for ours, theirs in zip(student, teacher, strict=True)]
    total = torch.stack(values).sum()
    total.backward()
    assert [value.item() for value in values] == pytest.approx(record["value_by_level"], rel=RTOL[precision])
    assert total.item() == pytest.approx(record["value"], rel=RTOL[precision])
    for each, digest in zip(student, record["grad"], strict=True):
        assert_digest(each.grad, digest, RTOL[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", FUSION)
def test_fusion_module(case: str, precision: str) -> None:
    """The recorded gradients of the inputs in training mode hold those in evaluation mode as well."""
    golden, dtype, rtol = FUSION[case], getattr(torch, precision), RTOL[precision]
    # Behind batch norm, gradients are differences of numbers of order 1.
    atol = {"float64": 1e-13, "float32": 1e-5}[precision]
    feature = make_input(*golden["x"]).to(dtype).requires_grad_()
    deeper = None if golden["y"] is None else make_input(*golden["y"]).to(dtype).requires_grad_()
    for mode in ("eval", "train"):
        record = golden[f"{mode},{precision}"]
        fusion = AttentionFusion(golden["in"], golden["mid"], golden["out"], golden["fuse"])
        load(fusion, variance=2.0, prefix=f"{case}/")
        fusion.to(dtype).train(mode == "train")
        assert {published(name) for name in fusion.state_dict()} == {
            name for name, *_ in golden["state_dict"]
        }
        out, handed_on = fusion(feature, (golden["out_shape"],) * 2, deeper)
        assert_digest(out, record["out"], rtol)
        assert_digest(handed_on, record["residual"], rtol)
        if mode == "eval" and precision == "float64":
            for name, value in (("out", out), ("residual", handed_on)):
                stored = ARRAYS[f"{case}/eval/{name}64"]
                np.testing.assert_allclose(value.detach().numpy(), stored, rtol=1e-11, atol=1e-12)

        ((out * probe(out)).sum() + (handed_on * probe(handed_on)).sum()).backward()
        gradients = {published(name): parameter.grad for name, parameter in fusion.named_parameters()}
        assert gradients.keys() == record["grad_weights"].keys()
        for name, digest in record["grad_weights"].items():
            assert_digest(gradients[name], digest, rtol, atol)
        for each, digest in ((feature, record["grad_x"]), (deeper, record["grad_y"])):
            if digest is not None:  # not recorded in float64
                assert each is not None
                assert_digest(each.grad, digest, rtol, atol)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_training_step_with_all_levels(precision: str) -> None:
    dtype, record = getattr(torch, precision), NETWORK[precision]
    student, teacher = (create_model(NETWORK[role], num_classes=100) for role in ("student", "teacher"))
    load(student, variance=1.0)
    load(teacher, variance=1.0, salt="teacher/")
    term = ReviewKD(["relu", 1, 2, 3], preactivation="neither")
    known = [
        describe(model, taps, 32)
        for model, taps in ((student, term.student_features), (teacher, term.teacher_features))
    ]
    facts = RunFacts(100, 4, None, *known, student=student, teacher=teacher)
    assert term.refusals(facts) == []
    term.setup(facts)
    for depth, fusion in enumerate(reversed(term.fusions)):
        load(fusion, variance=1.0, prefix=f"abfs.{depth}.")
    counts = [sum(p.numel() for p in module.parameters()) for module in (student, term)]
    assert counts == NETWORK["learnable_parameter_counts_student_extra"]

    distiller = Distiller(Labels(), 1.0, {"review_kd": (term, 1.0)}).to(dtype)
    student.to(dtype).train()
    teacher.to(dtype).eval()
    images = make_input(*NETWORK["input"]).to(dtype)
    with features(student, term.student_features) as ours:
        student_output = ModelOutput(student(images), ours.collect())
    with features(teacher, term.teacher_features) as theirs, torch.no_grad():
        teacher_output = ModelOutput(teacher(images), theirs.collect())
    rtol = NETWORK_RTOL[precision]
    assert_digest(student_output.logits, record["student_logits"], rtol)
    total, values = distiller(
        TermInputs(
            images=images,
            targets=torch.tensor(NETWORK["labels"]),
            indices=torch.arange(4),
            student=student_output,
            teacher=teacher_output,
            progress=Progress(36, 240),
            generator=torch.Generator(),
        )
    )
    value_rtol = RTOL[precision]
    assert values["ground_truth"].item() == pytest.approx(record["loss_gt"], rel=value_rtol)
    assert values["review_kd"].item() == pytest.approx(record["loss_kd"], rel=value_rtol)
    assert total.item() == pytest.approx(record["total"], rel=value_rtol)

    total.backward()
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in student.parameters()))
    assert norm == pytest.approx(record["grad_l2_student"], rel=rtol)
    if precision == "float64":
        norms = {name: p.grad.norm().item() for name, p in student.named_parameters()}
        assert norms == pytest.approx(dict(NETWORK["grad_l2_by_student_parameter_float64"]), rel=rtol)
    gradients = {
        f"abfs.{depth}.{published(name)}": parameter.grad
        for depth, fusion in enumerate(reversed(term.fusions))
        for name, parameter in fusion.named_parameters()
    }
    assert gradients.keys() == record["grad_extra"].keys()
    for name, digest in record["grad_extra"].items():
        assert_digest(gradients[name], digest, rtol, atol=rtol * digest["max_abs"])
