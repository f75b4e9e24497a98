"""Few-shot encoders, heads and Meta-Baseline against golden figures of the published implementation.

Models without figures are held against their definition, written out once more from the weights' names.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_models import make_input, make_weight, probe, seeded
from torch import Tensor, nn

from gda.models import create_model, features
from gda.models.zoo.heads import LinearHead, NearestPrototypeHead
from gda.models.zoo.meta_baseline import MetaBaseline
from gda.models.zoo.similarity import METRICS, dot_product

GOLDEN = json.loads((Path(__file__).parent / "golden" / "models_few_shot.json").read_text())
MODELS = GOLDEN["models"]
METHODS = {"dot": dot_product, **METRICS}
PUBLISHED_COUNTS = {
    "convnet4": 113_088,
    "resnet12": 7_996_800,
    "resnet12-wide": 12_424_320,
    "resnet12_bottle": 7_996_800,
    "resnet18_bottle": 10_210_944,
    "resnet36_bottle": 23_159_040,
    "resnet50_bottle": 32_565_120,
}


def published(name: str) -> nn.Module:
    """Builds what the published code makes of the recorded arguments."""
    make = MODELS[name].get("make", {"model": name})
    if make["model"] == "classifier":
        head = {"linear-classifier": "linear", "nn-classifier": "cosine"}[make["classifier"]]
        return create_model(make["encoder"], make["classifier_args"]["n_classes"], head=head)
    if make["model"] == "meta-baseline":
        return MetaBaseline(create_model(make["encoder"], None), make.get("method", "cos"))
    if make["model"] == "linear-classifier":
        return LinearHead(make["in_dim"], make["n_classes"])
    if make["model"] == "nn-classifier":
        return NearestPrototypeHead(make["in_dim"], make["n_classes"], make.get("metric", "cos"))
    return create_model(name, None)


def weight(key: str, shape: tuple[int, ...], recipe: str) -> Tensor:
    if shape or key.endswith("num_batches_tracked"):
        return make_weight(key, shape, recipe)
    uniform = torch.rand((1,), generator=seeded(key), dtype=torch.float64)  # a temperature
    return ((uniform + 0.5).reshape(()) * 10).float()


def load_recipe(model: nn.Module, recipe: str) -> dict[str, Tensor]:
    weights = {key: weight(key, tuple(value.shape), recipe) for key, value in model.state_dict().items()}
    model.load_state_dict(weights)
    return weights


def inputs(name: str) -> list[Tensor]:
    return [make_input(of, tuple(shape)).double() for of, shape in MODELS[name]["inputs"].values()]


def check_tensor(found: Tensor, recorded: Any) -> None:
    """Compares with a whole recorded tensor, or with the digest of one."""
    if isinstance(recorded, list):
        expected = torch.tensor(recorded, dtype=torch.float64)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
        return
    assert list(found.shape) == recorded["shape"]
    flat = found.flatten()
    sums = 1e-9 * flat.abs().sum().item()  # sums may cancel
    figures = {
        "sum": flat.sum(),
        "mean": flat.mean(),
        "abs_sum": flat.abs().sum(),
        "l2": flat.norm(),
        "min": flat.min(),
        "max_abs": flat.abs().max(),
        "probe_dot": flat @ probe(flat.numel()),
    }
    for figure, value in figures.items():
        if figure in recorded:
            assert value.item() == pytest.approx(recorded[figure], rel=1e-6, abs=sums), figure
    if "sample" in recorded:
        sample = torch.tensor(recorded["sample"], dtype=torch.float64)
        difference = (flat[recorded["sample_index"]] - sample).abs().max()
        assert difference <= 1e-6 * recorded["max_abs"]


def test_every_published_encoder_is_in_the_zoo() -> None:
    parts = ("classifier", "linear-classifier", "nn-classifier", "meta-baseline")
    assert set(GOLDEN["registered_names"]) - set(parts) == set(PUBLISHED_COUNTS)
    for name, count in PUBLISHED_COUNTS.items():
        encoder = create_model(name, num_classes=None)
        assert sum(parameter.numel() for parameter in encoder.parameters()) == count, name


@pytest.mark.parametrize("name", MODELS)
def test_parameters_have_the_published_names_shapes_and_order(name: str) -> None:
    model, golden = published(name), MODELS[name]
    entries = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")]
        for key, value in model.state_dict().items()
    ]
    assert entries == golden["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == golden["n_params"]
    assert sum(buffer.numel() for buffer in model.buffers()) == golden["n_buffer_elements"]
    assert getattr(model, "out_features", None) == golden.get("out_dim")
    temperature = getattr(model, "temp", None)
    assert isinstance(temperature, nn.Parameter) == golden.get("temp_is_parameter", False)
    if "temp_initial" in golden:
        assert float(torch.as_tensor(temperature).detach()) == golden["temp_initial"]


@pytest.mark.parametrize("recipe", ["plain", "fan_in"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_stages_equal_the_published_ones(name: str, recipe: str) -> None:
    run = MODELS[name]["runs"][recipe]
    model = published(name)
    weights = load_recipe(model, recipe)
    floating = [value.double().sum().item() for value in weights.values() if value.is_floating_point()]
    assert sum(floating) == pytest.approx(run["weights_sum"], rel=1e-9, abs=1e-6)

    stages = [f"stage{number}" for number in (1, 2, 3, 4)] if "stages" in run else []
    model.double().eval()
    with torch.no_grad(), features(model, stages) as taps:
        exact = model(*inputs(name))
        maps = taps.collect()
    check_tensor(exact, run["output_float64"])
    for stage, recorded in zip(stages, run.get("stages", []), strict=True):
        check_tensor(maps[stage], recorded)


@pytest.mark.parametrize("name", [name for name in MODELS if "resnet" not in name])
def test_single_precision_is_as_near_as_recorded(name: str) -> None:
    run = MODELS[name]["runs"]["fan_in"]
    model = published(name)
    load_recipe(model, "fan_in")
    with torch.no_grad():
        rounded = model.eval()(*(each.float() for each in inputs(name))).double()
        exact = model.double()(*inputs(name))
    # Rounding depends on the machine's kernels: the recorded deviation times a margin.
    allowed = max(10 * run["float32_vs_float64_max_abs"], 1e-5 * run["output_max_abs"])
    assert (rounded - exact).abs().max() <= allowed


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_equals_the_published_one(name: str) -> None:
    recorded = MODELS[name]["runs"]["fan_in"]["train_mode_float64"]
    model = published(name)
    load_recipe(model, "fan_in")
    logits = model.double().train()(*inputs(name))
    check_tensor(logits.detach(), recorded["logits"])

    running = [buffer.flatten() for key, buffer in model.named_buffers() if "num_batches" not in key]
    assert bool(running) == (recorded["running_stats_after"] is not None)
    if running:
        check_tensor(torch.cat(running), recorded["running_stats_after"])

    scalar = (logits.flatten() @ probe(logits.numel())) / logits.numel()
    assert scalar.item() == pytest.approx(recorded["scalar"], rel=1e-6)
    scalar.backward()
    norms = {key: p.grad.norm().item() for key, p in model.named_parameters() if p.grad is not None}
    assert list(norms) == [key for key, _ in recorded["grad_l2_by_parameter"]]
    for key, expected in recorded["grad_l2_by_parameter"]:
        assert norms[key] == pytest.approx(expected, rel=1e-6, abs=1e-10), key


@pytest.mark.parametrize("case", GOLDEN["metric_function"])
def test_metrics_equal_the_published_ones(case: str) -> None:
    recorded = GOLDEN["metric_function"][case]
    metric = METHODS[case.split("-")[0]]
    of_images, of_classes = (make_input(*recorded[key]).double() for key in ("feat", "proto"))
    check_tensor(metric(of_images, of_classes) * recorded["temp"], recorded["logits_float64"])


def test_the_flattened_width_of_convnet4_follows_the_image_size() -> None:
    for size, width in MODELS["convnet4"]["flattened_width_by_input_size"].items():
        encoder = create_model("convnet4", None, image_size=int(size)).eval()
        assert encoder.out_features == width
        assert encoder(torch.zeros(1, 3, int(size), int(size))).shape == (1, width)


def restated(weights: dict[str, Tensor], pooled: bool, images: Tensor) -> Tensor:
    """Runs a few-shot ResNet in evaluation mode from its weights' names alone, pooling after activating."""

    def normalised(x: Tensor, norm: str) -> Tensor:
        mean, var = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
        scale = weights[f"{norm}.weight"] / (var + 1e-5).sqrt()
        shift = weights[f"{norm}.bias"] - mean * scale
        return x * scale[:, None, None] + shift[:, None, None]

    x = images
    for block in dict.fromkeys(key.split(".conv")[0] for key in weights if ".conv" in key):
        out = x
        for number in (1, 2, 3):
            out = F.conv2d(out, weights[f"{block}.conv{number}.weight"], padding=1)
            out = normalised(out, f"{block}.bn{number}")
            out = out if number == 3 else torch.maximum(out, 0.1 * out)
        first = f"{block}.downsample.0.weight" in weights
        if first:
            x = normalised(F.conv2d(x, weights[f"{block}.downsample.0.weight"]), f"{block}.downsample.1")
        out = torch.maximum(out + x, 0.1 * (out + x))
        x = out.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)) if first and pooled else out
    return x.mean((2, 3))


@pytest.mark.parametrize(
    ("name", "options", "blocks"),
    [
        ("resnet12", {}, None),
        ("resnet12", {"pooling": True}, None),
        ("resnet12-wide", {}, None),
        ("resnet36_bottle", {}, (2, 3, 5, 2)),
        ("resnet50_bottle", {}, (3, 4, 6, 3)),
    ],
)
def test_a_model_without_figures_equals_its_definition(
    name: str, options: dict[str, Any], blocks: tuple[int, ...] | None
) -> None:
    model = create_model(name, None, **options)
    weights = {key: value.double() for key, value in load_recipe(model, "fan_in").items()}
    convolutions = [key.removesuffix(".conv1.weight") for key in weights if key.endswith(".conv1.weight")]
    expected = [f"layer{stage}" for stage in (1, 2, 3, 4)]
    if blocks is not None:
        expected = [f"layer{k}.{block}" for k, count in enumerate(blocks, 1) for block in range(count)]
    assert convolutions == expected

    pooled = blocks is not None or bool(options)
    images = make_input("fewshot-visible", (2, 3, 80, 80))[:, :, :18, :18].double()
    with torch.no_grad():
        found = model.double().eval()(images)
    check_tensor(found, restated(weights, pooled, images).tolist())
