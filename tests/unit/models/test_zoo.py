"""The families of the zoo: counts, patterns, feature taps, image sizes, initialisation."""

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gda.errors import UserError
from gda.models import create_model, features
from gda.models.dry_run import SkipInit
from gda.models.registry import zoo
from gda.models.tap_descriptions import describe
from gda.models.zoo.shufflenet_v1_cifar import ChannelShuffle
from gda.models.zoo.shufflenet_v2_cifar import BasicUnit
from gda.models.zoo.wide_resnet import WideResNet

# Parameters of the published classes for 100 classes (mobilenetv1: less the 900 that its head has more), and
# the channels of the maps that their feature lists hold, by stage.
RESNET, RESNET_X4 = {1: 16, 2: 32, 3: 64}, {1: 64, 2: 128, 3: 256}
BASIC, BOTTLENECK = {1: 64, 2: 128, 3: 256, 4: 512}, {1: 256, 2: 512, 3: 1024, 4: 2048}
PUBLISHED = {
    "resnet8": (83_892, RESNET),
    "resnet20": (278_324, RESNET),
    "resnet32": (472_756, RESNET),
    "resnet56": (861_620, RESNET),
    "resnet80": (1_250_484, RESNET),
    "resnet110": (1_736_564, RESNET),
    "resnet8x4": (1_233_540, RESNET_X4),
    "resnet32x4": (7_433_860, RESNET_X4),
    "cifar_resnet18": (11_220_132, BASIC),
    "cifar_resnet34": (21_328_292, BASIC),
    "cifar_resnet50": (23_705_252, BOTTLENECK),
    "wrn_16_1": (180_916, {1: 16, 2: 32, 3: 64}),
    "wrn_16_2": (703_284, {1: 32, 2: 64, 3: 128}),
    "wrn_40_1": (569_780, {1: 16, 2: 32, 3: 64}),
    "wrn_40_2": (2_255_156, {1: 32, 2: 64, 3: 128}),
    "vgg8": (3_965_028, BASIC),
    "vgg11": (9_277_284, BASIC),
    "vgg13": (9_462_180, BASIC),
    "vgg16": (14_774_436, BASIC),
    "vgg19": (20_086_692, BASIC),
    "mobilenetv2": (812_836, {2: 12, 3: 16, 4: 48}),
    "shufflenetv1": (949_258, {1: 24, 2: 240, 3: 480, 4: 960}),
    "shufflenetv2": (1_355_528, {1: 24, 2: 116, 3: 232, 4: 464}),
    "mobilenetv1": (4_231_976 - 900 * 1025, {1: 128, 2: 256, 3: 512, 4: 1024}),
}
# Whose stages end in an activation.
ACTIVATED = {name for name in PUBLISHED if not name.startswith(("wrn", "mobilenetv2"))}
FIRST_STRIDE = {32: 1, 80: 2, 224: 4}


@cache
def outline(name: str, num_classes: int = 100) -> nn.Module:
    """The model without memory for its weights, which no test needs changed."""
    with torch.device("meta"), SkipInit():
        return create_model(name, num_classes=num_classes)


@cache
def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, num_classes=7)


@cache
def built_fresh(name: str) -> nn.Module:
    """A model whose weights no test touches."""
    torch.manual_seed(1)
    return create_model(name, num_classes=100)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_equal_the_published_ones(name: str) -> None:
    model = outline(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name][0]


@pytest.mark.parametrize("name", ["cifar_resnet18", "cifar_resnet34", "cifar_resnet50"])
def test_the_depth_of_a_wide_stem_resnet_counts_convolutions_and_head(name: str) -> None:
    weighted = [
        path
        for path, module in outline(name).named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in path
    ]
    assert len(weighted) == int(name.removeprefix("cifar_resnet"))


@pytest.mark.parametrize("name", ["wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"])
def test_depth_and_width_of_a_wide_resnet_are_in_its_name(name: str) -> None:
    depth, widening = map(int, name.split("_")[1:])
    model = outline(name)
    blocks = [len(stage.layer) for stage in (model.block1, model.block2, model.block3)]
    assert blocks == [(depth - 4) // 6] * 3
    projections = [path for path, _ in model.named_modules() if path.endswith("convShortcut")]
    # At factor 1 the first stage keeps the stem's channels and needs no projection.
    assert len(projections) == (2 if widening == 1 else 3)


@pytest.mark.parametrize("depth", [4, 15, 18])
def test_a_depth_that_is_not_6n_plus_4_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="6n"):
        WideResNet(depth, widening=1, num_classes=10)


@pytest.mark.parametrize("name", ["vgg8", "vgg11", "vgg13", "vgg16", "vgg19"])
def test_a_vgg_has_one_linear_layer_where_its_name_counts_three(name: str) -> None:
    convolutions = [module for module in outline(name).modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) + 3 == int(name.removeprefix("vgg"))


@pytest.mark.parametrize("name", sorted(zoo()))
def test_stages_have_the_scale_of_their_number(name: str) -> None:
    model, size = outline(name), zoo()[name].image_size
    taps = describe(model, list(model.layout.names()), size)
    for number in model.layout.stages:
        assert taps[f"stage{number}"].stride == pytest.approx(FIRST_STRIDE[size] * 2 ** (number - 1), rel=0.1)
    for number in model.layout.preactivations:
        before, after = taps[f"stage{number}:pre"], taps[f"stage{number}"]
        assert before.shape == after.shape
        assert not before.activated
    assert taps["pooled"].stride is None
    assert len(taps["pooled"].shape) == 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_stages_are_the_maps_of_the_published_feature_lists(name: str) -> None:
    model = outline(name)
    stages = [f"stage{number}" for number in model.layout.stages]
    taps = describe(model, stages, zoo()[name].image_size)
    assert {int(stage[-1]): taps[stage].shape[0] for stage in stages} == PUBLISHED[name][1]
    assert {taps[stage].activated for stage in stages} == {name in ACTIVATED}
    assert model.layout.preactivations.keys() == model.layout.stages.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_stages_are_what_activations_make_of_the_maps_before(name: str) -> None:
    model = built(name)
    names = [tap for number in model.layout.stages for tap in (f"stage{number}", f"stage{number}:pre")]
    with features(model.eval(), names) as taps, torch.no_grad():
        model(torch.rand(2, 3, 32, 32))
    for number in model.layout.stages:
        after, before = taps.features[f"stage{number}"], taps.features[f"stage{number}:pre"]
        if name in ACTIVATED:
            assert torch.equal(after, before.relu())
            assert (before < 0).any()
        elif name == "mobilenetv2":
            assert after is before
        else:  # a wide ResNet's map before its activation comes out of the next batch norm
            assert not torch.equal(after, before)


@pytest.mark.parametrize("name", PUBLISHED)
def test_other_image_sizes_and_any_number_of_classes_work(name: str) -> None:
    model = outline(name, num_classes=13)
    for size in (8, 20, 64):
        assert model(torch.zeros(2, 3, size, size, device="meta")).shape == (2, 13)


@pytest.mark.parametrize("name", PUBLISHED)
def test_digits_of_8_pixels_train(name: str) -> None:
    model = built(name).train()
    model.zero_grad()
    loss = F.cross_entropy(model(torch.rand(4, 3, 8, 8)), torch.arange(4))
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_images_too_small_for_a_vgg_are_refused_in_words() -> None:
    with pytest.raises(UserError, match="can't take images of 4 pixels"):
        describe(outline("vgg8"), ["pooled"], 4)


def test_a_vgg_pools_images_of_64_pixels_once_more() -> None:
    shapes = {size: describe(outline("vgg8"), ["block4"], size)["block4"].shape for size in (16, 32, 64)}
    assert shapes == {16: (512, 2, 2), 32: (512, 4, 4), 64: (512, 4, 4)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_that_a_module_got_or_put_out_is_overwritten(name: str) -> None:
    model = built(name).train()
    seen: list[tuple[str, Tensor, Tensor]] = []
    handles = [
        module.register_forward_hook(
            lambda _, inputs, output, path=path: seen.extend(
                (path, tensor, tensor.detach().clone()) for tensor in (*inputs, output)
            )
        )
        for path, module in model.named_modules()
    ]
    model(torch.rand(2, 3, 16, 16))
    for handle in handles:
        handle.remove()
    assert len(seen) >= 2 * len(handles) - 2
    assert [path for path, tensor, kept in seen if not torch.equal(tensor, kept)] == []


def weight_std(module: nn.Module) -> float:
    return module.weight.std().item()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("cifar_resnet18", "layer3.0.conv1"),
        ("wrn_16_2", "block3.layer.1.conv1"),
        ("vgg8", "block3.0"),
        ("mobilenetv2", "conv2.0"),
        ("mobilenetv2", "blocks.6.0.conv.3"),
    ],
)
def test_convolutions_are_initialised_by_their_outputs(name: str, path: str) -> None:
    convolution = built_fresh(name).get_submodule(path)
    fan_out = convolution.out_channels * math.prod(convolution.kernel_size)
    assert weight_std(convolution) == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("shufflenetv1", "layer3.1.conv3"),
        ("shufflenetv2", "conv2"),
        ("mobilenetv1", "model.13.3"),
    ],
)
def test_other_families_keep_the_initialisation_of_torch(name: str, path: str) -> None:
    convolution = built_fresh(name).get_submodule(path)
    bound = 1 / math.sqrt(convolution.in_channels / convolution.groups)
    assert convolution.weight.abs().max().item() <= bound
    assert weight_std(convolution) == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize(("name", "path"), [("vgg8", "classifier"), ("mobilenetv2", "classifier.0")])
def test_these_heads_start_near_zero(name: str, path: str) -> None:
    head = built_fresh(name).get_submodule(path)
    assert weight_std(head) == pytest.approx(0.01, rel=0.05)
    assert (head.bias == 0).all()


def test_biases_that_start_at_zero() -> None:
    assert (built_fresh("wrn_16_2").fc.bias == 0).all()
    vgg = built_fresh("vgg8")
    assert all((bias == 0).all() for key, bias in vgg.named_parameters() if key.endswith("bias"))


@pytest.mark.parametrize("name", ["wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2"])
def test_weights_are_drawn_from_the_global_generator(name: str) -> None:
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        model = create_model(name, num_classes=3)
        drawn.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_channel_shuffle_equals_the_one_of_torch(groups: int) -> None:
    x = torch.rand(2, 12, 3, 4)
    assert torch.equal(ChannelShuffle(groups)(x), F.channel_shuffle(x, groups))


def published_unit(unit: BasicUnit, x: Tensor) -> Tensor:
    """The unit as published: the ReLU at its end is that of the computed half alone."""
    passed, half = x.chunk(2, dim=1)
    out = unit.bn1(unit.conv1(half)).relu()
    out = unit.bn3(unit.conv3(unit.bn2(unit.conv2(out)))).relu()
    return F.channel_shuffle(torch.cat([passed, out], 1), 2)


def test_a_unit_of_shufflenet_v2_equals_the_published_one_and_so_does_its_gradient() -> None:
    torch.manual_seed(0)
    unit = BasicUnit(8).double()
    source = torch.randn(4, 8, 5, 5, dtype=torch.float64, requires_grad=True)
    outputs = [unit(source.relu()), published_unit(unit, source.relu())]
    assert torch.allclose(*outputs, rtol=0, atol=1e-12)
    direction = torch.randn_like(outputs[0])
    gradients = [torch.autograd.grad((output * direction).sum(), source)[0] for output in outputs]
    assert torch.allclose(*gradients, rtol=0, atol=1e-12)
