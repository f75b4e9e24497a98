"""Names of taps, hooks that come and go, and models that must not be tapped."""

import copy
from collections.abc import Iterator

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from gda.errors import UserError
from gda.models import create_model, features
from gda.models.taps import tap_paths, unwrap


def tiny_resnet() -> nn.Module:
    torch.manual_seed(0)
    return create_model("resnet8", num_classes=5, widths=(4, 4, 8, 8))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_without_names_there_are_no_hooks() -> None:
    model = tiny_resnet()
    taps = features(model, [])
    assert hooks(model) == 0
    model(torch.zeros(2, 3, 8, 8))
    assert taps.collect() == {}


def test_hooks_are_gone_after_remove_and_after_with() -> None:
    model, x = tiny_resnet(), torch.zeros(2, 3, 8, 8)
    taps = features(model, ["stage1", "pooled"])
    assert hooks(model) == 2
    taps.remove()
    assert hooks(model) == 0
    with features(model, ["stage1", "stage1:pre", "layer1"]) as taps:
        assert hooks(model) == 3
        model(x)
        assert set(taps.features) == {"stage1", "stage1:pre", "layer1"}
        taps.collect()
    assert hooks(model) == 0
    model(x)
    assert taps.collect() == {}
    with pytest.raises(ZeroDivisionError), features(model, ["stage1"]):
        1 / 0  # noqa: B018
    assert hooks(model) == 0


def test_collect_forgets() -> None:
    model = tiny_resnet()
    taps = features(model, ["stage2"])
    model(torch.zeros(2, 3, 8, 8))
    assert set(taps.collect()) == {"stage2"}
    assert taps.features == {}
    assert taps.collect() == {}


def test_the_last_forward_pass_counts() -> None:
    model = tiny_resnet().eval()
    taps = features(model, ["stage2"])
    first, second = torch.randn(2, 1, 3, 8, 8)
    model(second)
    expected = taps.collect()
    model(first)
    model(second)
    torch.testing.assert_close(taps.collect(), expected, rtol=0, atol=0)


def test_two_sets_of_taps_do_not_mix() -> None:
    model = tiny_resnet().eval()
    one, other = features(model, ["stage1", "stage2"]), features(model, ["stage2"])
    model(torch.randn(1, 3, 8, 8))
    assert set(one.features) == {"stage1", "stage2"}
    one.remove()
    one.collect()
    model(torch.randn(1, 3, 8, 8))
    assert one.features == {}
    assert set(other.features) == {"stage2"}


def test_an_input_given_by_keyword_is_tapped() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(input=x)

    model, x = Outer(), torch.randn(4, 3)
    with features(model, ["inner:input"]) as taps:
        model(x)
    assert torch.equal(taps.features["inner:input"], x)


def test_names_and_paths() -> None:
    assert tap_paths(tiny_resnet(), ["stage3", "stage3:pre", "pooled", "layer1.0", "relu:input", ""]) == {
        "stage3": "layer3",
        "stage3:pre": "layer3.0.relu2:input",
        "pooled": "fc:input",
        "layer1.0": "layer1.0",
        "relu:input": "relu:input",
        "": "",
    }


@pytest.mark.parametrize("name", ["layre2", "layre2:input", "Layer2", "layer-2"])
def test_a_mistyped_path_gets_the_nearest_ones(name: str) -> None:
    with pytest.raises(UserError, match=r"no module .*; did you mean 'layer2'"):
        features(tiny_resnet(), ["layer1", name])


@pytest.mark.parametrize("name", ["stage_2", "Stage2", "stage-2"])
def test_a_mistyped_stage_gets_the_stage(name: str) -> None:
    with pytest.raises(UserError, match=r"no module .*; did you mean 'stage2'"):
        features(tiny_resnet(), [name])


def test_a_bare_name_is_refused_for_the_list_that_is_wanted() -> None:
    with pytest.raises(UserError, match=r"\['layer1'\], not 'layer1'"):
        features(tiny_resnet(), "layer1")


@pytest.mark.parametrize("name", ["stage4", "stage4:pre", "stage0", "stage1:past", "stage12"])
def test_a_stage_that_is_not_there_gets_those_that_are(name: str) -> None:
    with pytest.raises(UserError) as error:
        features(tiny_resnet(), [name])
    assert f"no {name};" in str(error.value)
    assert "it has stage1, stage2, stage3, stage1:pre" in str(error.value)


def test_a_number_is_a_path_like_any_other() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with pytest.raises(UserError, match="no module '7'; there are: 0, 1"):
        features(model, ["7"])


def test_foreign_models_without_stages_say_so() -> None:
    with pytest.raises(UserError, match="no stage2; of the names that hold for every model, it has pooled"):
        features(torchvision.models.squeezenet1_1(), ["stage2"])


def test_a_failing_name_leaves_no_hook() -> None:
    model = tiny_resnet()
    with pytest.raises(UserError):
        features(model, ["stage1", "stage9"])
    assert hooks(model) == 0


def test_a_module_called_stage1_is_not_taken_for_the_scale() -> None:
    """The module stage1 of a Visformer is of stride 8: it is stage 2."""
    with torch.device("meta"):
        model = timm.create_model("visformer_tiny", num_classes=5)
    assert tap_paths(model, ["stage2"]) == {"stage2": "stage1"}
    with pytest.raises(UserError, match=r"no stage1; .* it has stage2"):
        tap_paths(model, ["stage1"])


def test_a_deep_copy_is_not_tapped_and_does_not_disturb_the_original() -> None:
    model = tiny_resnet().eval()
    taps = features(model, ["stage2", "fc:input"])
    twin = copy.deepcopy(model)
    twin(torch.ones(1, 3, 8, 8))
    assert taps.features == {}
    model(torch.zeros(1, 3, 8, 8))
    kept = dict(taps.features)
    twin(torch.ones(1, 3, 8, 8))
    assert taps.features["stage2"] is kept["stage2"]
    own = features(twin, ["stage2"])
    twin(torch.ones(1, 3, 8, 8))
    assert set(own.features) == {"stage2"}
    assert taps.features["stage2"] is kept["stage2"]


def nested(model: nn.Module) -> Iterator[nn.Module]:
    average = torch.optim.swa_utils.AveragedModel(model)
    yield model
    yield nn.DataParallel(model)
    yield torch.compile(nn.DataParallel(model), backend="eager")
    yield nn.DataParallel(torch.compile(model, backend="eager"))
    yield average
    yield torch.compile(average, backend="eager")


def test_wrappers_are_looked_through_however_nested() -> None:
    model = tiny_resnet()
    for wrapped in nested(model):
        inner = unwrap(wrapped)
        assert type(inner) is type(model)
        with features(wrapped, ["stage1"]):
            assert hooks(inner) == 1
    assert [unwrap(wrapped) is model for wrapped in nested(model)] == [True] * 4 + [False] * 2
