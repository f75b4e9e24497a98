"""Batched transforms against torchvision and Pillow, image by image."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, Normalize
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop

from gda.data.pipeline import Pipeline
from gda.data.resample import resize
from gda.data.transforms import CenterCrop, HorizontalFlip, PadCrop, RandomResizedCrop, Resize
from gda.errors import UserError

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_images(count: int = 64, height: int = 32, width: int = 32) -> Tensor:
    """Half noise, half black and white blocks: both kinds overshoot under a cubic kernel."""
    noise = torch.randint(0, 256, (count, 3, height, width), generator=draws(9), dtype=torch.uint8)
    noise[::2] = (noise[::2] > 127) * 255
    return noise


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pil(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def deviation(one: Tensor, other: Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


def test_pad_crop_equals_torchvision_at_the_drawn_places() -> None:
    images = make_images()
    places = torch.randint(9, (2, 64), generator=draws(3))
    cropped = PadCrop(4)(images, draws(3))
    for number, (top, left) in enumerate(places.T.tolist()):
        assert torch.equal(cropped[number], TF.crop(TF.pad(images[number], [4]), top, left, 32, 32))
    assert {0, 8} <= set(places.flatten().tolist())


def test_flips_equal_torchvision_and_have_the_asked_share() -> None:
    images = make_images(2000, 4, 4)
    flipped = HorizontalFlip(0.3)(images, draws())
    mirrored = (flipped == TF.hflip(images)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert mirrored.float().mean() == pytest.approx(0.3, abs=0.04)
    assert torch.equal(HorizontalFlip(0.0)(images, draws()), images)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("source", "size"), [((32, 32), 32), ((32, 32), 48), ((45, 30), 17), ((80, 96), 40)])
def test_resized_crops_equal_pillow(interpolation: str, source: tuple[int, int], size: int) -> None:
    images = make_images(64, *source)
    transform = RandomResizedCrop(size, interpolation=interpolation)
    boxes = transform.boxes(64, *source, draws(5)).tolist()
    for image, result, (top, left, height, width) in zip(
        images, transform(images, draws(5)), boxes, strict=True
    ):
        box = to_pil(image).crop((left, top, left + width, top + height))
        # One axis at a time: Pillow 13 changed the order of the passes for some sizes.
        wide = box.resize((size, height), FILTERS[interpolation])
        assert deviation(result, from_pil(wide.resize((size, size), FILTERS[interpolation]))) <= 1


def test_random_interpolation_takes_each_kernel_for_half_of_the_images() -> None:
    images = make_images(1000, 16, 16)
    results = {
        kind: RandomResizedCrop(8, interpolation=kind)(images, draws(2)) for kind in (*FILTERS, "random")
    }
    linear, cubic = (
        (results["random"] == results[kind]).flatten(1).all(1) for kind in ("bilinear", "bicubic")
    )
    assert (linear | cubic).all()
    assert cubic.float().mean() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("shape", [(32, 32), (40, 24)])
def test_boxes_follow_torchvisions_law(shape: tuple[int, int]) -> None:
    count, height, width = 6000, *shape
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    ours = RandomResizedCrop(32, scale, ratio).boxes(count, height, width, draws(1)).double()
    image = torch.zeros(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        theirs = torch.tensor(
            [TorchvisionCrop.get_params(image, scale, ratio) for _ in range(count)]
        ).double()
    for figure in (
        lambda b: b[:, 2] * b[:, 3] / (height * width),
        lambda b: (b[:, 3] / b[:, 2]).log(),
        lambda b: b[:, 0] / (height - b[:, 2]).clamp(min=1),
        lambda b: b[:, 1] / (width - b[:, 3]).clamp(min=1),
    ):
        one, other = figure(ours).sort().values, figure(theirs).sort().values
        grid = torch.cat([one, other]).sort().values
        gap = (
            (torch.searchsorted(one, grid, right=True) - torch.searchsorted(other, grid, right=True))
            .abs()
            .max()
        )
        assert gap / count < 1.95 * math.sqrt(2 / count)  # two-sample Kolmogorov-Smirnov, p = 0.001
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


@pytest.mark.parametrize("shape", [(10, 90), (90, 10), (10, 10)])
def test_the_fallback_is_torchvisions(shape: tuple[int, int]) -> None:
    # An area that can't fit: ratio 1 and more than the whole image, or a strip.
    transform = RandomResizedCrop(8, scale=(0.99, 1.0), ratio=(0.5, 0.6) if shape[0] <= 10 else (1.5, 2.0))
    boxes = transform.boxes(4, *shape, draws())
    expected = TorchvisionCrop.get_params(
        torch.zeros(3, *shape), list(transform.scale), list(transform.ratio)
    )
    assert (boxes == torch.tensor(expected)).all()


def test_the_w2s_evaluation_equals_pillow() -> None:
    images = make_images(16)
    results = CenterCrop(32)(Resize(36)(images, draws()), draws())
    for image, result in zip(images, results, strict=True):
        larger = TF.resize(to_pil(image), 36, InterpolationMode.BILINEAR)
        assert deviation(result, from_pil(TF.center_crop(larger, [32, 32]))) <= 1


@pytest.mark.parametrize(("shape", "size"), [((20, 31), 12), ((31, 20), 33)])
def test_resize_keeps_the_ratio_as_torchvision_does(shape: tuple[int, int], size: int) -> None:
    images = make_images(8, *shape)
    results = Resize(size)(images, draws())
    for image, result in zip(images, results, strict=True):
        expected = from_pil(TF.resize(to_pil(image), size, InterpolationMode.BILINEAR))
        assert result.shape == expected.shape
        assert deviation(result, expected) <= 1


def test_resizing_to_the_same_size_touches_nothing() -> None:
    images = make_images(4)
    assert resize(images, 32, 32) is images


def test_the_pipeline_applies_in_order_and_normalises_as_torchvision() -> None:
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    images = make_images(4)
    pipeline = Pipeline({"resize": Resize(36), "off": None, "crop": CenterCrop(32)}, mean, std)
    plain = CenterCrop(32)(Resize(36)(images, draws()), draws())
    expected = Normalize(mean, std)(plain.float() / 255)
    result = pipeline(images, draws())
    assert result.dtype == torch.float32
    assert torch.allclose(result, expected, atol=1e-5)
    assert pipeline.random == []


def test_output_sizes_are_known_beforehand() -> None:
    flat = ((0.5,) * 3, (0.5,) * 3)
    assert Pipeline({"crop": PadCrop(4), "flip": HorizontalFlip()}, *flat).output_size(32) == 32
    assert Pipeline({"crop": RandomResizedCrop(24)}, *flat).output_size(32) == 24
    assert Pipeline({"resize": Resize(36), "crop": CenterCrop(32)}, *flat).output_size(16) == 32
    with pytest.raises(UserError, match="32 pixels out of images of 16"):
        Pipeline({"crop": CenterCrop(32)}, *flat).output_size(16)
    with pytest.raises(UserError, match="32 pixels out of images of 16"):
        CenterCrop(32)(make_images(1, 16, 16), draws())


@pytest.mark.parametrize("scale", [(0.5,), (0.9, 0.2), (0.0, 1.0), (0.5, 1.5)])
def test_impossible_intervals_are_refused(scale: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="scale"):
        RandomResizedCrop(32, scale=scale)


@pytest.mark.parametrize(
    "transform", [PadCrop(2), HorizontalFlip(), RandomResizedCrop(12, interpolation="random")]
)
def test_equal_draws_give_equal_images_and_inputs_stay(transform: PadCrop) -> None:
    images = make_images(16, 16, 16)
    before = images.clone()
    assert torch.equal(transform(images, draws(4)), transform(images, draws(4)))
    assert not torch.equal(transform(images, draws(4)), transform(images, draws(5)))
    assert torch.equal(images, before)
    assert transform.random
