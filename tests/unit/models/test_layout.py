"""Stages mean the same scale in every model: in each of the zoo, and in timm's by what timm lists."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from gda.models import TapDescription, create_model, describe, features, list_models
from gda.models.dry_run import SkipInit
from gda.models.layout import Layout, layout_of
from gda.models.registry import zoo

SIZES = {32: (32, 16, 8, 4), 80: (40, 20, 10, 5), 224: (56, 28, 14, 7)}
"""Height and width of stage 1 to 4 by the image size that a model is made for."""

Describe = Callable[[str], dict[str, TapDescription]]


@pytest.fixture(scope="module")
def described() -> Describe:
    def of(name: str) -> dict[str, TapDescription]:
        with SkipInit():
            model = create_model(name, num_classes=7)
        return describe(model, list(layout_of(model).names()), zoo()[name].image_size)

    return of


@pytest.mark.parametrize("name", list_models())
def test_stages_of_the_zoo_have_their_scale(name: str, described: Describe) -> None:
    taps = described(name)
    sizes = SIZES[zoo()[name].image_size]
    stages = {tap: each for tap, each in taps.items() if tap.startswith("stage")}
    for tap, each in stages.items():
        number = int(tap[len("stage")])
        assert each.shape[1:] == (sizes[number - 1], sizes[number - 1]), tap
        if tap.endswith(":pre"):
            assert not each.activated
            assert each.shape[1:] == taps[f"stage{number}"].shape[1:]
    pooled = taps["pooled"]
    assert len(pooled.shape) == 1
    if "final" in taps:
        assert taps["final"].shape[0] == pooled.shape[0]
    if name not in ("resnet12", "resnet12-wide"):  # nothing is pooled: all maps are of the image's size
        assert {f"stage{number}" for number in (2, 3)} <= stages.keys()
        assert {f"stage{number}:pre" for number in (2, 3)} <= stages.keys()


@pytest.mark.parametrize("name", list_models())
def test_tapped_maps_of_the_zoo_stay_as_they_were(name: str) -> None:
    """Zoo models are tapped without copies, so nothing may be computed in place."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=7).eval()
    taps = list(layout_of(model).names())
    size = 16 if name in ("resnet12", "resnet12-wide") else min(zoo()[name].image_size, 64)
    if name == "convnet4":
        model, size = create_model(name, num_classes=7, image_size=32).eval(), 32
    seen: dict[str, int] = {}
    with features(model, taps) as tapped, torch.no_grad():
        model.register_forward_hook(
            lambda *_: seen.update({name: value._version for name, value in tapped.features.items()})
        )
        logits = model(torch.randn(2, 3, size, size))
        found = tapped.collect()
    assert logits.shape == (2, 7)
    assert seen.keys() == set(taps)
    assert set(seen.values()) == {0}
    if "final" in found:
        torch.testing.assert_close(found["final"].mean(dim=(2, 3)), found["pooled"])


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet26d",
        "resnetv2_50",
        "mobilenetv3_small_050",
        "efficientnet_b0",
        "regnety_002",
        "densenet121",
        "vgg11_bn",
        "convnext_atto",
        "swin_tiny_patch4_window7_224",
        "darknet53",
    ],
)
def test_stages_of_timm_networks_are_at_strides_4_to_32(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=5)
    taps = describe(model, [*(f"stage{number}" for number in (1, 2, 3, 4)), "pooled"], 224)
    assert [taps[f"stage{number}"].stride for number in (1, 2, 3, 4)] == [4, 8, 16, 32]
    assert len(taps["pooled"].shape) == 1


def test_the_last_map_of_a_stride_is_the_stage() -> None:
    with torch.device("meta"):
        model = timm.create_model("efficientnet_b0")
    # Blocks 3 and 4 are of stride 16, blocks 5 and 6 of stride 32.
    assert layout_of(model).stages == {1: "blocks.1", 2: "blocks.2", 3: "blocks.4", 4: "blocks.6"}


@pytest.mark.parametrize(("depth", "ends"), [(12, (2, 5, 8, 11)), (24, (5, 11, 17, 23)), (6, (0, 2, 3, 5))])
def test_stages_of_transformers_are_quarters_of_their_depth(depth: int, ends: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", depth=depth)
    assert layout_of(model).stages == {number: f"blocks.{end}" for number, end in enumerate(ends, 1)}


@pytest.mark.parametrize(
    ("name", "options", "head"),
    [
        ("resnet18", {}, "fc"),
        ("resnet18", {"num_classes": 0}, None),
        ("convnext_atto", {}, "head.fc"),
        ("vit_tiny_patch16_224", {}, "head"),
        ("deit_tiny_distilled_patch16_224", {}, "head"),  # has a second one, for the teacher's labels
        ("efficientnet_b0", {}, "classifier"),
    ],
)
def test_the_head_of_timm_models(name: str, options: dict[str, int], head: str | None) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    assert layout_of(model).head == head
    width = describe(model, ["pooled"], 224)["pooled"].shape
    assert width == (model.num_features,) or (name == "efficientnet_b0" and width == (1280,))


@pytest.mark.parametrize(
    ("name", "final"),
    [
        ("resnet18", "global_pool:input"),
        ("regnety_002", "head.global_pool:input"),  # dropout follows, without effect in evaluation
        ("convnext_atto", None),  # a norm follows
        ("mobilenetv3_small_050", None),  # a convolution follows
        ("vit_tiny_patch16_224", None),
    ],
)
def test_the_final_map_is_one_whose_average_the_head_gets(name: str, final: str | None) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    assert layout_of(model).final_map == final
    if final is not None:
        with features(model, ["final", "pooled"]) as taps, torch.no_grad():
            model(torch.randn(2, 3, 64, 64))
            found = taps.collect()
        torch.testing.assert_close(found["final"].mean(dim=(2, 3)), found["pooled"])


def test_a_model_that_says_nothing_has_its_last_linear_layer_as_head() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    assert layout_of(model) == Layout({}, {}, "3")
    assert describe(model, ["pooled"], 2)["pooled"].shape == (8,)
    headless = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())
    assert layout_of(headless) == Layout({}, {}, None)
    assert describe(headless, ["pooled"], 2)["pooled"] == TapDescription("", (16,), None, False)


def test_the_layout_of_a_model_within_another() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = create_model("resnet8", num_classes=5)
            self.layout = self.inner.layout.within("inner")

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    outer = Outer()
    assert outer.layout.names() == {
        name: f"inner.{path}" for name, path in outer.inner.layout.names().items()
    }
    assert describe(outer, ["stage2"], 32)["stage2"].shape == (32, 16, 16)


def test_an_encoder_within_another_model_still_puts_out_the_pooled_vector() -> None:
    encoder = Layout({1: "0"}, {1: "0.1:input"}, head=None)
    assert encoder.names()["pooled"] == ""
    assert encoder.within("a").names() == {"stage1": "a.0", "stage1:pre": "a.0.1:input", "pooled": "a"}
    assert encoder.within("a").within("b").names()["pooled"] == "b.a"
