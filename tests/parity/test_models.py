"""The zoo against golden figures of the published implementation (names, shapes, counts, outputs)."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gda.models import create_model, list_models

GOLDEN = json.loads((Path(__file__).parent / "golden" / "models_image_classification.json").read_text())
# The golden file's own names for models that the published code could build but not name.
NAMES = {"cifar_resnet18": "constructed_widestem_basic_2222"}
ZOO = [name for name in list_models() if NAMES.get(name, name) in GOLDEN["models"]]


def seeded(text: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(text.encode()))


def make_input(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=seeded("input:" + name), dtype=torch.float64).float()


def make_weight(key: str, shape: tuple[int, ...], recipe: str) -> Tensor:
    generator, last = seeded(key), key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if len(shape) >= 2:
        std = {"plain": 0.05, "fan_in": math.sqrt(2 / math.prod(shape[1:]))}[recipe]
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * std).float()
    if last in ("weight", "running_var"):
        return (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5).float()
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.1).float()


def probe(count: int) -> Tensor:
    return torch.cos(0.7 * torch.arange(count, dtype=torch.float64) + 0.3)


def golden(name: str) -> dict[str, Any]:
    return GOLDEN["models"][NAMES.get(name, name)]


def build(name: str, recipe: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """Returns the model with the recipe's weights, and the golden input."""
    model = create_model(name, num_classes=100)
    weights = {key: make_weight(key, tuple(value.shape), recipe) for key, value in model.state_dict().items()}
    model.load_state_dict(weights)
    images = make_input(golden(name)["input"], tuple(golden(name)["input_shape"]))
    return model.to(dtype), images.to(dtype)


def test_the_weight_recipe_gives_the_recorded_values() -> None:
    for key, recorded in GOLDEN["recipe_check"].items():
        if ":" in key or not recorded["shape"]:
            continue
        weight = make_weight(key, tuple(recorded["shape"]), "plain")
        assert weight.flatten()[:4].tolist() == recorded["first"]


@pytest.mark.parametrize("name", ZOO)
def test_parameters_have_the_published_names_shapes_and_order(name: str) -> None:
    model = create_model(name, num_classes=100)
    entries = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")]
        for key, value in model.state_dict().items()
    ]
    assert entries == golden(name)["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == golden(name)["n_params"]
    assert sum(buffer.numel() for buffer in model.buffers()) == golden(name)["n_buffer_elements"]


@pytest.mark.parametrize("recipe", ["plain", "fan_in"])
@pytest.mark.parametrize("name", ZOO)
def test_logits_equal_the_published_ones(name: str, recipe: str) -> None:
    run = golden(name)["runs"][recipe]
    expected = torch.tensor(run["logits_float64"], dtype=torch.float64)
    scale = run["logits_max_abs"]
    model, images = build(name, recipe, torch.float64)
    with torch.no_grad():
        exact = model.eval()(images)
        assert (exact - expected).abs().max() <= 1e-6 * scale
        rounded = model.float()(images.float()).double()
    # Rounding depends on the machine's kernels: the recorded deviation times a margin.
    assert (rounded - expected).abs().max() <= max(10 * run["float32_vs_float64_max_abs"], 1e-5 * scale)


@pytest.mark.parametrize("name", ZOO)
def test_a_training_step_equals_the_published_one(name: str) -> None:
    recorded = golden(name)["runs"]["fan_in"]["train_mode_float64"]
    model, images = build(name, "fan_in", torch.float64)
    logits = model.train()(images)
    expected = torch.tensor(recorded["logits"], dtype=torch.float64)
    assert (logits - expected).abs().max() <= 1e-6 * expected.abs().max()

    running = [buffer.flatten() for key, buffer in model.named_buffers() if "num_batches" not in key]
    stats, digest = torch.cat(running), recorded["running_stats_after"]
    assert list(stats.shape) == digest["shape"]
    assert stats.norm().item() == pytest.approx(digest["l2"], rel=1e-6)
    assert (stats * probe(len(stats))).sum().item() == pytest.approx(digest["probe_dot"], rel=1e-6, abs=1e-6)

    scalar = (logits.flatten() * probe(logits.numel())).sum() / logits.numel()
    assert scalar.item() == pytest.approx(recorded["scalar"], rel=1e-6)
    scalar.backward()
    gradients = {key: p.grad.norm().item() for key, p in model.named_parameters() if p.grad is not None}
    assert list(gradients) == [key for key, _ in recorded["grad_l2_by_parameter"]]
    for key, expected_norm in recorded["grad_l2_by_parameter"]:
        assert gradients[key] == pytest.approx(expected_norm, rel=1e-5, abs=1e-9), key
