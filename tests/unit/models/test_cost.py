"""Parameters and multiply-accumulates, against a count by hand and against torch's own counter."""

import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gda.errors import UserError
from gda.models import create_model, list_models
from gda.models.cost import Cost, measure_cost
from gda.models.dry_run import SkipInit, dry_run
from gda.models.registry import zoo


def counted_by_torch(model: nn.Module, size: int) -> int:
    """Multiply-accumulates by torch's counter, which counts two operations for each."""
    model = model.to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2


def test_resnet20_by_hand() -> None:
    """He et al., section 4.2: a stem, three stages of three blocks of two 3x3 convolutions, and a head."""
    stem = 32 * 32 * 16 * 3 * 9
    first = 6 * 32 * 32 * 16 * 16 * 9
    second = 16 * 16 * (32 * 16 * 9 + 32 * 16 + 5 * 32 * 32 * 9)
    third = 8 * 8 * (64 * 32 * 9 + 64 * 32 + 5 * 64 * 64 * 9)
    head = 64 * 100
    convolutions = (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64) * 9
    shortcuts = 16 * 32 + 32 * 64
    norms = 2 * (7 * 16 + 7 * 32 + 7 * 64)
    assert measure_cost(create_model("resnet20", 100), 32) == Cost(
        parameters=convolutions + shortcuts + norms + 64 * 100 + 100,
        macs=stem + first + second + third + head,
    )


def test_work_grows_with_the_image() -> None:
    model = create_model("resnet8", 100)
    small, large = measure_cost(model, 32), measure_cost(model, 64)
    head = 64 * 100
    assert (large.macs - head) == 4 * (small.macs - head)
    assert large.parameters == small.parameters


@pytest.mark.parametrize("name", list_models())
def test_the_zoo_against_torchs_counter(name: str) -> None:
    with SkipInit():
        model = create_model(name, num_classes=10)
    size = zoo()[name].image_size
    assert measure_cost(model, size).macs == counted_by_torch(model, size)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {}),
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "map"}),  # attention in the head
        ("swin_tiny_patch4_window7_224", {}),
        ("swinv2_tiny_window8_256", {"img_size": 256}),  # makes its position bias by a network
        ("convnext_atto", {}),
        ("efficientformer_l1", {}),
        ("mixer_s16_224", {}),
    ],
)
def test_timm_models_against_torchs_counter(name: str, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    size = options.get("img_size", 224)
    on_meta = measure_cost(model, size)
    model = model.to_empty(device="cpu")
    for buffer in model.buffers():  # tables of positions must hold positions
        buffer.zero_()
    assert measure_cost(model, size) == on_meta
    assert on_meta.macs == counted_by_torch(model, size)


def test_attention_of_torchvision_and_of_torch_against_torchs_counter() -> None:
    vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)
    expected = counted_by_torch(torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5), 32)
    frozen = vit.eval().requires_grad_(False)  # here torch would take a kernel that hides its work
    with torch.no_grad():
        assert measure_cost(frozen, 32).macs == expected


class Strange(nn.Module):
    """What image networks hardly use: transposed, dilated and grouped, in one and three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1)
        self.grouped = nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2)
        self.dilated = nn.Conv2d(6, 8, (3, 1), dilation=2, groups=2, padding="same")
        self.line = nn.Conv1d(8, 4, 5, stride=3)
        self.volume = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dilated(self.grouped(self.up(x)))
        line = self.line(x.flatten(2))
        volume = self.volume(x[:, None])
        products = torch.einsum("bchw,bdhw->bcd", x, x)
        return torch.baddbmm(products, products, products).sum() + line.sum() + volume.sum()


def test_other_operations_against_torchs_counter_and_a_real_pass() -> None:
    shapes: dict[bool, list[torch.Size]] = {False: [], True: []}
    model, dry = Strange(), False
    for module in model.children():
        module.register_forward_hook(lambda m, i, out: shapes[dry].append(out.shape))
    with torch.no_grad():
        model(torch.zeros(1, 3, 8, 8))
        dry = True
        cost = measure_cost(model, 8)
    assert shapes[True] == shapes[False]
    for module in model.children():
        module._forward_hooks.clear()
    assert cost.macs == counted_by_torch(model, 8)


def test_shared_parameters_count_once_and_frozen_ones_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False))
    model[1].weight = model[0].weight
    model.requires_grad_(False)
    assert measure_cost(model, 4) == Cost(parameters=9, macs=2 * 16 * 9)


def test_wrappers_are_looked_through() -> None:
    model = create_model("resnet8", 10)
    expected = measure_cost(model, 32)
    assert measure_cost(torch.optim.swa_utils.AveragedModel(model), 32) == expected
    assert measure_cost(nn.DataParallel(model), 32) == expected


def test_a_size_that_does_not_fit_is_refused() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224")
    with pytest.raises(UserError, match=r"can't take images of 32 pixels: .*height"):
        measure_cost(model, 32)


def test_images_beyond_all_memory_are_refused() -> None:
    with pytest.raises(UserError, match="can't take images of 10000000 pixels"):
        measure_cost(create_model("resnet8", 10), 10**7)


def test_a_dry_pass_counts_all_its_images() -> None:
    model = create_model("resnet8", 10)
    assert dry_run(model, 32, images=3) == 3 * measure_cost(model, 32).macs


def test_skipping_initial_values_draws_nothing_and_keeps_what_is_computed() -> None:
    random = torch.get_rng_state()
    with SkipInit():
        create_model("resnet8", 10)
        weight = nn.Parameter(torch.full((10, 10), 5.0))
        nn.init.normal_(weight)
        nn.init.uniform_(weight)
        nn.init.kaiming_normal_(weight)
        assert weight.min() == weight.max() == 5
    assert torch.equal(torch.get_rng_state(), random)
    with SkipInit():
        # Truncated distributions redraw until the values suit: what is no parameter must be drawn.
        assert torch.full((9,), 5.0).normal_().max() < 5
        assert torch.full((9,), 5.0).uniform_().max() < 5
        nn.init.trunc_normal_(weight)
    assert weight.abs().max() <= 2


def test_a_dry_pass_imports_no_compiler() -> None:
    code = (
        "import sys; from gda.models import create_model; from gda.models.cost import measure_cost; "
        "measure_cost(create_model('resnet8', 10), 32); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
