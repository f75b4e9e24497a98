"""Descriptions of taps are right for every kind of model, and asking leaves no trace."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from gda.errors import UserError
from gda.models import TapDescription, create_model, describe, features

NAMES = ["stage1", "stage2:pre", "layer3.0.conv1", "avgpool", "pooled", "fc"]


def tiny_resnet() -> nn.Module:
    return create_model("resnet8", num_classes=5, widths=(4, 6, 8, 10))


EXPECTED = {
    "stage1": TapDescription("layer1", (6, 16, 16), 1, True),
    "stage2:pre": TapDescription("layer2.0.relu2:input", (8, 8, 8), 2, False),
    "layer3.0.conv1": TapDescription("layer3.0.conv1", (10, 4, 4), 4, False),
    "avgpool": TapDescription("avgpool", (10, 1, 1), 16, True),
    "pooled": TapDescription("fc:input", (10,), None, True),
    "fc": TapDescription("fc", (5,), None, False),
}


def test_path_shape_stride_and_activation() -> None:
    assert describe(tiny_resnet(), NAMES, 16) == EXPECTED


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def averaged(model: nn.Module) -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(model)


@pytest.mark.parametrize(
    "change",
    [
        frozen,
        averaged,
        nn.Module.eval,
        nn.Module.double,
        nn.Module.bfloat16,
        lambda model: model.to("meta"),
        lambda model: model.to(memory_format=torch.channels_last),
    ],
)
def test_in_whatever_state_the_model_is(change: Any) -> None:
    assert describe(change(tiny_resnet()), NAMES, 16) == EXPECTED


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_in_whatever_mode_it_is_asked(mode: Any) -> None:
    model = tiny_resnet()
    with mode():
        assert describe(model, NAMES, 16) == EXPECTED
        assert torch.is_grad_enabled() is False


def test_as_many_real_shapes_as_dry_ones() -> None:
    model = tiny_resnet()
    with features(model, NAMES) as taps:
        model(torch.zeros(2, 3, 16, 16))
    assert {name: tuple(value.shape[1:]) for name, value in taps.features.items()} == {
        name: each.shape for name, each in describe(model, NAMES, 16).items()
    }


def hooks_of(model: nn.Module) -> list[tuple[int, int]]:
    return [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]


def test_asking_leaves_no_trace() -> None:
    class Restless(nn.Module):
        """Draws at every forward pass, in evaluation mode too."""

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(())

    model = nn.Sequential(tiny_resnet(), Restless(), nn.Dropout(0.5))
    model[0].layer2.eval()  # as in fine-tuning, where some statistics stay
    model(torch.randn(4, 3, 16, 16)).sum().backward()
    model.zero_grad(set_to_none=False)
    model[0].fc.weight.grad = None
    with features(model, ["0.layer1"]) as taps:
        taps.collect()
        state = copy.deepcopy(model.state_dict())
        grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        training = [module.training for module in model.modules()]
        hooks = hooks_of(model)
        random = torch.get_rng_state()
        describe(model, ["0.layer1", "1", "0.layer1:input"], 16)
        assert hooks_of(model) == hooks
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == training
    assert len(set(training)) == 2
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)


def test_a_failure_leaves_no_trace_either() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, 2))
    grey = nn.Conv2d(1, 4, 3)
    random = torch.get_rng_state()
    assert describe(model, ["0"], 8)["0"].shape == (4, 6, 6)
    with pytest.raises(UserError, match=r"can't take images of 9 pixels: shapes \(2, 196\) and \(144, 2\)"):
        describe(model, ["0"], 9)
    with pytest.raises(UserError, match=r"can't take images of 2 pixels: a convolution of \(3, 3\)"):
        describe(model, ["0"], 2)
    with pytest.raises(UserError, match=r"can't take images of 8 pixels: .*meets 3 channels"):
        describe(grey, [""], 8)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_modules_that_can_not_be_tapped_are_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.unused, self.conv = Pair(), nn.Identity(), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.pair(self.conv(x))[0]

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    assert describe(Odd(), ["conv", "pair:input"], 8)["pair:input"].shape == (4, 8, 8)
    with pytest.raises(UserError, match="'pair' can't be tapped: it puts out no tensor"):
        describe(Odd(), ["conv", "pair"], 8)
    with pytest.raises(UserError, match="'unused' can't be tapped: it is not reached"):
        describe(Odd(), ["unused"], 8)
    with pytest.raises(UserError, match="no module 'convv'; did you mean 'conv'"):
        describe(Odd(), ["convv"], 8)


def test_token_maps_tell_their_class_tokens() -> None:
    with torch.device("meta"):
        vit = timm.create_model("vit_tiny_patch16_224", num_classes=5)
        registers = timm.create_model("vit_base_patch14_reg4_dinov2", num_classes=5, img_size=112)
    assert describe(vit, ["stage1", "pooled"], 224) == {
        "stage1": TapDescription("blocks.2", (197, 192), 16, False, prefix_tokens=1),
        "pooled": TapDescription("head:input", (192,), None, False),
    }
    assert describe(registers, ["stage4"], 112)["stage4"] == TapDescription(
        "blocks.11", (69, 768), 14, False, prefix_tokens=5
    )


def test_maps_come_channels_first_from_models_that_compute_channels_last() -> None:
    with torch.device("meta"):
        swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5)
    stages = describe(swin, ["stage1", "stage4", "pooled"], 224)
    assert [each.shape for each in stages.values()] == [(96, 56, 56), (768, 7, 7), (768,)]
    assert [each.stride for each in stages.values()] == [4, 32, None]


ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.LeakyReLU(0.1),
    nn.PReLU(),
    nn.ELU(),
    nn.SELU(),
    nn.GELU(),
    nn.SiLU(),
    nn.Mish(),
    nn.Hardswish(),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Softplus(),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations_are_known_also_pooled_and_reshaped(activation: nn.Module) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        activation,
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 2),
    )
    found = describe(model, ["0", "1", "2", "3", "4", "5"], 8)
    assert [each.activated for each in found.values()] == [False, True, True, True, True, False]


@pytest.mark.parametrize(
    "change",
    [nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1, groups=4)],
    ids=lambda module: type(module).__name__,
)
def test_what_comes_after_an_activation_is_not_activated(change: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), change)
    found = describe(model, ["1", "2"], 8)
    assert [each.activated for each in found.values()] == [True, False]
