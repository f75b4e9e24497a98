"""Models without their head: every family's gives what its head gets, and takes the weights of both."""

import copy
import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gda.errors import UserError
from gda.models import create_model, features
from gda.models.dry_run import SkipInit
from gda.models.headless import leave_out_head
from gda.models.registry import FAMILIES, list_models, zoo
from gda.models.weights.checkpoints import load_checkpoint, misfit
from gda.models.zoo.heads import LinearHead
from gda.models.zoo.meta_baseline import MetaBaseline
from gda.seeding import seeded

State = dict[str, Tensor]
Saved = Callable[[Mapping[str, Any]], Path]

# The first model of each family; the few-shot ResNet without pooling is slow.
FIRST = {family: next(iter(importlib.import_module(family).MODELS)) for family in FAMILIES}
NAMES = [{"resnet12": "resnet12_bottle"}.get(name, name) for name in FIRST.values()]
TIMM = ["timm/test_resnet", "timm/test_convnext", "timm/mobilenetv3_small_050"]


def options(name: str) -> dict[str, Any]:
    return {"image_size": 32} if name == "convnet4" else {}


def model_of(name: str, classes: int | None, seed: int = 0) -> Any:
    """A model in evaluation mode, whose batch norm has statistics of its own."""
    with seeded(seed, "model"):
        model = create_model(name, classes, **options(name))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def head_inputs(model: Any) -> Tensor:
    """What the head of a model gets."""
    with features(model, ("pooled",)) as taps, torch.no_grad():
        model(images())
        return taps.collect()["pooled"]


def states(name: str) -> dict[str, State]:
    encoder = model_of(name, None)
    return {
        "whole": model_of(name, 7).state_dict(),
        "headless": encoder.state_dict(),
        "meta": MetaBaseline(encoder).state_dict(),
    }


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def zoo_encoder(name: str) -> bool:
    return name in zoo() and zoo()[name].encoder


def gda_run(state: State) -> dict[str, Any]:
    return {"format": 1, "epoch": 3, "metrics": {"test_top1": 50.0}, "model": state, "optimizer": {}}


LAYOUTS: dict[str, Callable[[State], dict[str, Any]]] = {
    "bare": lambda state: dict(state),
    "gda_run": gda_run,
    "average": lambda state: (
        gda_run({k: torch.zeros_like(v) for k, v in state.items()})
        | {"model_ema": {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in state.items()}}}
    ),
}


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    def save(content: Mapping[str, Any]) -> Path:
        torch.save(dict(content), tmp_path / "weights.pt")
        return tmp_path / "weights.pt"

    return save


def test_every_family_of_the_zoo_is_among_those_tried() -> None:
    assert len(set(NAMES)) == len(FAMILIES)


@pytest.mark.parametrize("name", list_models())
def test_every_model_of_the_zoo_can_leave_its_head_out(name: str) -> None:
    with torch.device("meta"), SkipInit():
        whole: Any = create_model(name, 7, **options(name))
        headless = create_model(name, None, **options(name))
    assert misfit(headless, whole.state_dict()) is None
    assert misfit(headless, headless.state_dict()) is None
    assert misfit(whole, headless.state_dict()) is not None
    head = whole.classifier if zoo_encoder(name) else whole.get_submodule(whole.layout.head)
    assert size(whole) - size(headless) == size(head) > 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [*NAMES, *TIMM])
def test_weights_of_the_whole_model_give_what_its_head_gets(name: str, layout: str, saved: Saved) -> None:
    whole, headless = model_of(name, 7), model_of(name, None, seed=1)
    expected = head_inputs(whole)
    with torch.no_grad():
        assert not torch.allclose(headless(images()), expected)
        path = saved(LAYOUTS[layout](whole.state_dict()))
        load_checkpoint(headless, path, weights="ema" if layout == "average" else "raw")
        assert torch.equal(headless(images()), expected)


@pytest.mark.parametrize("name", ["resnet8", "convnet4", "timm/test_resnet"])
def test_a_head_for_any_number_of_classes_is_left_out(name: str, saved: Saved) -> None:
    whole = model_of(name, 64)
    headless = model_of(name, None, seed=1)
    load_checkpoint(headless, saved(whole.state_dict()))
    assert torch.equal(headless(images()), head_inputs(whole))


@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2", "convnet4", "timm/test_resnet"])
@pytest.mark.parametrize("learnable", [True, False], ids=["learned", "fixed"])
def test_a_meta_learners_weights_go_into_an_encoder(name: str, learnable: bool, saved: Saved) -> None:
    encoder, other = model_of(name, None), model_of(name, None, seed=1)
    state = MetaBaseline(encoder, learnable_temperature=learnable).state_dict()
    assert ("temp" in state) == learnable
    load_checkpoint(other, saved(gda_run(state)))
    assert torch.equal(other(images()), encoder(images()))


def test_convnet4_is_read_both_with_and_without_its_prefix(saved: Saved) -> None:
    """Its own body is called encoder, too."""
    whole = model_of("convnet4", 7)
    bare = whole.encoder.state_dict()
    assert all(key.startswith("encoder.") for key in bare)
    for state in (bare, whole.state_dict(), MetaBaseline(whole.encoder).state_dict()):
        other = model_of("convnet4", None, seed=1)
        load_checkpoint(other, saved(gda_run(state)))
        assert torch.equal(other(images()), whole.encoder(images()))


FULL = ("resnet8", "mobilenetv2", "convnet4", "resnet12_bottle", "timm/test_resnet")


@pytest.mark.parametrize("kind", ["whole", "headless", "meta"])
@pytest.mark.parametrize("name", FULL)
def test_a_file_that_lacks_a_weight_of_the_body_is_refused(name: str, kind: str, saved: Saved) -> None:
    encoder, state = model_of(name, None, seed=1), states(name)[kind]
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    names = {key for key in before if not key.endswith("num_batches_tracked")}
    body = [key for key in state if key in names or key.removeprefix("encoder.") in names]
    for key in (body[0], body[len(body) // 2], body[-1]):
        lacking = {each: value for each, value in state.items() if each != key}
        own = key if key in names else key.removeprefix("encoder.")
        with pytest.raises(UserError, match=rf"do not fit the model: the file lacks: {re.escape(own)}[;.]"):
            load_checkpoint(encoder, saved(lacking))
        assert all(torch.equal(value, before[each]) for each, value in encoder.state_dict().items())


@pytest.mark.parametrize("kind", ["whole", "headless", "meta"])
@pytest.mark.parametrize("name", FULL)
def test_a_file_with_an_unknown_weight_in_the_body_is_refused(name: str, kind: str, saved: Saved) -> None:
    encoder, state = model_of(name, None, seed=1), states(name)[kind]
    wrapped = kind == "meta" or (kind == "whole" and zoo_encoder(name))
    extra = "encoder.surplus.weight" if wrapped else "surplus.weight"
    with pytest.raises(UserError, match=r"the model has no: .*surplus\.weight"):
        load_checkpoint(encoder, saved(state | {extra: torch.zeros(3)}))


@pytest.mark.parametrize("name", ["resnet8", "timm/test_resnet"])
@pytest.mark.parametrize("surplus", ["fc2.weight", "encoder.surplus.weight"])
def test_a_name_that_only_looks_familiar_is_unknown(name: str, surplus: str, saved: Saved) -> None:
    state = states(name)["whole"] | {surplus: torch.zeros(3)}
    with pytest.raises(UserError, match=rf"the model has no: {re.escape(surplus)}[;.]"):
        load_checkpoint(model_of(name, None), saved(state))


@pytest.mark.parametrize("name", ["resnet8", "convnet4"])
def test_weights_of_another_architecture_are_refused(name: str, saved: Saved) -> None:
    other = {"resnet8": "resnet20", "convnet4": "resnet12_bottle"}[name]
    for state in (states(other)["whole"], states(other)["meta"]):
        with pytest.raises(UserError, match="do not fit"):
            load_checkpoint(model_of(name, None), saved(state))


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "levit_128s"])
def test_a_timm_model_with_two_heads_leaves_both_out(name: str) -> None:
    with torch.device("meta"):
        whole, headless = create_model(f"timm/{name}", 7), create_model(f"timm/{name}", None)
    assert misfit(headless, whole.state_dict()) is None


def test_the_stages_of_a_headless_model_stay_where_they_are() -> None:
    whole = model_of("resnet8", 7)
    headless = leave_out_head(copy.deepcopy(whole))
    taps = ("stage1", "stage2:pre", "final", "pooled")
    with features(whole, taps) as of_whole, features(headless, taps) as of_headless:
        whole(images())
        headless(images())
    expected, found = of_whole.collect(), of_headless.collect()
    assert all(torch.equal(found[tap], expected[tap]) for tap in taps)


def test_a_meta_learner_around_a_headless_model_can_be_tapped() -> None:
    model = MetaBaseline(model_of("resnet8", None)).eval()
    shots, queries = torch.randn(1, 2, 1, 3, 8, 8), torch.randn(1, 3, 3, 8, 8)
    with features(model, ("stage3", "pooled")) as taps:
        model(shots, queries)
    found = taps.collect()
    assert found["pooled"].shape == (5, 64)
    assert len(found["stage3"]) == 5


def test_a_model_of_which_no_head_is_known_is_refused() -> None:
    with pytest.raises(UserError, match="Sequential has no head that could be left out"):
        leave_out_head(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))


def test_heads_of_foreign_models_are_found(saved: Saved) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))
    assert leave_out_head(model)(images()).shape == (2, 4)
    assert LinearHead(4, 7)(model(images())).shape == (2, 7)
