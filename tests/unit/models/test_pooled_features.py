"""Any model as an encoder: what its head turns into logits, with the model's own weights."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from gda.errors import UserError
from gda.models import create_model, features
from gda.models.pooled_features import PooledFeatures, encoder_of
from gda.seeding import seeded

HEADS = {
    "resnet8": "fc",
    "wrn_16_1": "fc",
    "vgg8": "classifier",
    "mobilenetv2": "classifier.0",
    "timm/test_resnet": "fc",
    "timm/test_vit": "head",
    "timm/mobilenetv3_small_050": "classifier",  # a convolution stands between its pooling and its head
}
SIZES = {"timm/test_vit": 160}


def images(size: int = 32, count: int = 3) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def model_of(name: str, classes: int | None = 7) -> Any:
    """A model in evaluation mode, whose batch norm has statistics of its own."""
    with seeded(0, "model"):
        model = create_model(name, classes, **({"image_size": 32} if name == "convnet4" else {}))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize(("name", "head"), HEADS.items())
def test_the_head_makes_the_models_logits_of_the_features(name: str, head: str) -> None:
    model, x = model_of(name), images(SIZES.get(name, 32))
    encoder = encoder_of(model)
    assert isinstance(encoder, PooledFeatures)
    with torch.no_grad():
        found = encoder(x)
        assert found.ndim == 2
        assert torch.equal(model.get_submodule(head)(found), model(x))


@pytest.mark.parametrize("name", ["convnet4", "resnet12_bottle"])
def test_an_encoder_with_a_head_hands_out_its_encoder(name: str) -> None:
    model = model_of(name)
    assert encoder_of(model) is model.encoder
    assert torch.equal(model.classifier(encoder_of(model)(images())), model(images()))


@pytest.mark.parametrize("name", ["convnet4", "resnet12_bottle"])
def test_an_encoder_is_its_own(name: str) -> None:
    encoder = model_of(name, None)
    assert encoder_of(encoder) is encoder


@pytest.mark.parametrize("name", ["resnet8", "timm/test_resnet"])
def test_a_model_whose_head_was_left_out_gives_what_it_puts_out(name: str) -> None:
    headless = model_of(name, None)
    assert torch.equal(encoder_of(headless)(images()), headless(images()))


@pytest.mark.parametrize("name", ["resnet8", "convnet4", "timm/test_resnet"])
@pytest.mark.parametrize("wrapper", [nn.DataParallel, AveragedModel], ids=["data_parallel", "average"])
def test_wrappers_are_looked_through(name: str, wrapper: type[nn.Module]) -> None:
    model = model_of(name)
    wrapped = wrapper(model).eval()
    assert torch.equal(encoder_of(wrapped)(images()), encoder_of(model)(images()))


def test_evaluation_mode_and_weights_are_the_models() -> None:
    model = model_of("resnet8").train()
    encoder = encoder_of(model)
    encoder.eval()
    assert not any(module.training for module in model.modules())
    before = encoder(images())
    with torch.no_grad():
        model.conv1.weight.mul_(-1)
    assert not torch.allclose(encoder(images()), before)
    assert {id(p) for p in encoder.parameters()} == {id(p) for p in model.parameters()}


def test_it_leaves_no_hook_behind_and_other_taps_alone() -> None:
    model = model_of("resnet8")
    with features(model, ("stage2", "pooled")) as taps:
        found = encoder_of(model)(images())
        assert torch.equal(taps.collect()["pooled"], found)
        model(images())
        assert taps.collect().keys() == {"stage2", "pooled"}
    hooks = [(m._forward_hooks, m._forward_pre_hooks) for m in model.modules()]
    assert not any(after or before for after, before in hooks)


def test_a_failing_pass_leaves_no_hook_behind() -> None:
    model = model_of("resnet8")
    with pytest.raises(RuntimeError):
        encoder_of(model)(torch.zeros(1, 5, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_copy_of_a_tapped_model_is_an_encoder_of_its_own() -> None:
    """As the moving average of a student that a feature method taps."""
    model = model_of("resnet8")
    with features(model, ("pooled",)) as taps:
        average = copy.deepcopy(model)
        with torch.no_grad():
            average.conv1.weight.mul_(-1)
        found = encoder_of(average)(images())
        assert taps.collect() == {}
    assert not torch.allclose(found, encoder_of(model)(images()))


def test_the_features_have_a_gradient_where_it_is_asked_for() -> None:
    model = model_of("resnet8")
    encoder_of(model)(images()).sum().backward()
    assert model.conv1.weight.grad is not None
    assert model.fc.weight.grad is None


def test_features_do_not_depend_on_what_else_is_in_the_batch() -> None:
    encoder = encoder_of(model_of("resnet8").double())
    x = images(count=5).double()
    apart = torch.cat([encoder(each[None]) for each in x])
    torch.testing.assert_close(encoder(x), apart, rtol=1e-12, atol=1e-12)


def test_a_model_that_says_nothing_true_of_its_head_is_refused() -> None:
    model = model_of("resnet8")
    model.layout = replace(model.layout, head="classifier")
    with pytest.raises(UserError, match="no module 'pooled'"):
        PooledFeatures(model)
