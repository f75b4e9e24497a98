"""Taps give what the modules compute, in every kind of model, and pass gradients on.

What is expected comes from running the modules one by one, without hooks.
"""

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from gda.models import create_model, features

Computed = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tiny_resnet() -> nn.Module:
    return create_model("resnet8", num_classes=5, widths=(4, 4, 8, 8))


def by_hand_zoo(model: nn.Module, x: Tensor) -> Computed:
    stem = model.relu(model.bn1(model.conv1(x)))
    block = model.layer1[0]
    summed = block.bn2(block.conv2(block.relu1(block.bn1(block.conv1(stem))))) + stem
    first = summed.relu()
    second = model.layer2(first)
    third = model.layer3(second)
    return {
        "conv1:input": x,
        "stage1:pre": summed,
        "stage1": first,
        "layer2": second,
        "layer2.0.conv1:input": first,
        "final": third,
        "pooled": third.mean(dim=(2, 3)),
        "fc": model.fc(third.mean(dim=(2, 3))),
    }


def torchvision_resnet() -> nn.Module:
    block = torchvision.models.resnet.BasicBlock
    return torchvision.models.resnet.ResNet(block, [1, 1, 1, 1], num_classes=5)


def by_hand_torchvision(model: nn.Module, x: Tensor) -> Computed:
    """Both maps are overwritten right after: one by an activation, one by the shortcut."""
    normed = model.bn1(model.conv1(x))
    stem = model.maxpool(normed.relu())
    block = model.layer1[0]
    inner = block.bn2(block.conv2(block.bn1(block.conv1(stem)).relu()))
    first = (inner + stem).relu()
    last = model.layer4(model.layer3(model.layer2(first)))
    return {
        "bn1": normed,
        "relu:input": normed,
        "layer1.0.bn2": inner,
        "layer1": first,
        "pooled": last.mean(dim=(2, 3)),
    }


def timm_resnet() -> nn.Module:
    return timm.create_model("resnet10t", num_classes=5)


def by_hand_timm_resnet(model: nn.Module, x: Tensor) -> Computed:
    first, norm, _, second = model.conv1[:4]  # activations are in place
    stem = norm(first(x))
    normed = model.bn1(model.conv1[6](model.conv1[4](second(stem.relu())).relu()))
    first_stage = model.layer1(model.maxpool(normed.relu()))
    last = model.layer4(model.layer3(model.layer2(first_stage)))
    return {
        "conv1.1": stem,
        "bn1": normed,
        "act1:input": normed,
        "stage1": first_stage,
        "stage4": last,
        "final": last,
        "pooled": last.mean(dim=(2, 3)),
    }


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=5, img_size=32, patch_size=8, depth=8, embed_dim=24, num_heads=3
    )


def by_hand_vit(model: nn.Module, x: Tensor) -> Computed:
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    after = []
    for block in model.blocks:
        tokens = tokens + block.attn(block.norm1(tokens))
        tokens = tokens + block.mlp(block.norm2(tokens))
        after.append(tokens)
    return {
        "stage1": after[1],
        "stage2": after[3],
        "stage3": after[5],
        "stage4": after[7],
        "blocks.4": after[4],
        "pooled": model.norm(after[7])[:, 0],
    }


def convnext() -> nn.Module:
    return timm.create_model("convnext_atto", num_classes=5, depths=(1, 1, 1, 1), dims=(4, 8, 12, 16))


def by_hand_convnext(model: nn.Module, x: Tensor) -> Computed:
    maps = [model.stem(x)]
    for stage in model.stages:
        maps.append(stage(maps[-1]))
    normed = model.head.norm(maps[-1].mean(dim=(2, 3), keepdim=True))
    return {**{f"stage{k}": maps[k] for k in (1, 2, 3, 4)}, "pooled": normed.flatten(1)}


def swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        num_classes=5,
        img_size=56,
        window_size=7,
        depths=(1, 1, 1, 1),
        embed_dim=8,
        num_heads=(1, 1, 1, 1),
    )


def by_hand_swin(model: nn.Module, x: Tensor) -> Computed:
    maps = [model.patch_embed(x)]
    for layer in model.layers:
        maps.append(layer(maps[-1]))
    stages = {f"stage{k}": maps[k].permute(0, 3, 1, 2) for k in (1, 2, 3, 4)}
    return {**stages, "pooled": model.norm(maps[-1]).mean(dim=(1, 2))}


def conv_head() -> nn.Module:
    return timm.create_model("resnetv2_18", num_classes=5)


def by_hand_conv_head(model: nn.Module, x: Tensor) -> Computed:
    last = model.norm(model.stages(model.stem(x)))
    return {"final": last, "pooled": last.mean(dim=(2, 3))}


CASES = {
    "zoo": (tiny_resnet, by_hand_zoo, 16),
    "torchvision": (torchvision_resnet, by_hand_torchvision, 32),
    "timm resnet": (timm_resnet, by_hand_timm_resnet, 32),
    "vit": (vit, by_hand_vit, 32),
    "convnext": (convnext, by_hand_convnext, 32),
    "swin": (swin, by_hand_swin, 56),
    "convolution as head": (conv_head, by_hand_conv_head, 32),
}
CASE = pytest.mark.parametrize(("build", "by_hand", "size"), CASES.values(), ids=CASES.keys())


@CASE
def test_taps_give_what_the_modules_compute(
    build: Callable[[], nn.Module], by_hand: Callable[[nn.Module, Tensor], Computed], size: int
) -> None:
    model = build().eval()
    x = torch.randn(3, 3, size, size)
    expected = by_hand(model, x.clone())
    untapped = model(x.clone())
    taps = features(model, list(expected))
    torch.testing.assert_close(model(x.clone()), untapped, rtol=0, atol=0)
    found = taps.collect()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@CASE
def test_gradient_flows_through_taps(
    build: Callable[[], nn.Module], by_hand: Callable[[nn.Module, Tensor], Computed], size: int
) -> None:
    model = build().double().eval()
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    names = list(by_hand(model, x.clone()))

    def gradients(computed: Computed) -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        weights = torch.Generator().manual_seed(1)
        sum(
            (value * torch.rand(value.shape, generator=weights, dtype=value.dtype)).sum()
            for value in (computed[name] for name in names)
        ).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = gradients(by_hand(model, x.clone()))
    taps = features(model, names)
    model(x.clone())
    found = gradients(taps.collect())
    assert found.keys() == expected.keys()
    assert any(value.abs().max() > 0 for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)
