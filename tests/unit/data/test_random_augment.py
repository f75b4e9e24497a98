"""Random augmentation against Pillow, operation by operation and image by image."""

import platform
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

from gda.data.colour_operations import brightness, contrast, sharpness
from gda.data.cutout import Cutout
from gda.data.geometric_operations import rotate
from gda.data.random_augment import OPERATIONS, RandomAugment

COUNT = 96
SIZES = [(32, 32), (17, 23), (8, 8), (40, 11)]
# A Pillow built for processors that multiply and add in one rounding blends otherwise, now and then.
BLENDING = 0 if platform.machine() in ("x86_64", "AMD64") else 1


def move(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


PILLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "auto_contrast": lambda image, _: ImageOps.autocontrast(image),
    "brightness": lambda image, value: ImageEnhance.Brightness(image).enhance(value),
    "colour": lambda image, value: ImageEnhance.Color(image).enhance(value),
    "contrast": lambda image, value: ImageEnhance.Contrast(image).enhance(value),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "identity": lambda image, _: image,
    "posterize": lambda image, value: ImageOps.posterize(image, int(value)),
    "rotate": lambda image, value: image.rotate(value),
    "sharpness": lambda image, value: ImageEnhance.Sharpness(image).enhance(value),
    "shear_x": lambda image, value: move(image, 1, value, 0, 0, 1, 0),
    "shear_y": lambda image, value: move(image, 1, 0, 0, value, 1, 0),
    "solarize": lambda image, value: ImageOps.solarize(image, value),
    "translate_x": lambda image, value: move(image, 1, 0, value * image.width, 0, 1, 0),
    "translate_y": lambda image, value: move(image, 1, 0, 0, 0, 1, value * image.height),
}
BLENDS = {"brightness", "colour", "contrast", "sharpness"}


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_images(height: int = 32, width: int = 32, count: int = COUNT) -> Tensor:
    """Noise, blocks of black and white, few grey levels in a narrow band, one colour, and slopes."""
    noise = torch.randint(0, 256, (count, 3, height, width), generator=draws(9), dtype=torch.uint8)
    noise[1::6] = (noise[1::6] > 127) * 255
    noise[2::6] = noise[2::6] // 16 + 90
    noise[3::6] = noise[3::6, :, :1, :1]
    noise[4::6] = (torch.arange(width) * 7 + torch.arange(height)[:, None] * 3) % 256
    noise[5::6, 1] = 200
    return noise


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pil(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def magnitude(name: str, uniform: float) -> float:
    low, high = OPERATIONS[name].magnitudes or (0.0, 0.0)
    return low + (high - low) * uniform


def deviation(ours: Tensor, theirs: Tensor) -> int:
    return int((ours.int() - theirs.int()).abs().max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_equals_pillow(name: str, size: tuple[int, int]) -> None:
    images = make_images(*size)
    uniform = torch.rand(COUNT, generator=draws(1), dtype=torch.float64)
    uniform[:4] = torch.tensor([0.0, 0.5, 0.25, 0.999999])
    results = OPERATIONS[name](images, uniform)
    assert results.dtype == torch.uint8
    assert results.shape == images.shape
    for image, result, at in zip(images, results, uniform.tolist(), strict=True):
        expected = from_pil(PILLOW[name](to_pil(image), magnitude(name, at)))
        assert deviation(result, expected) <= (BLENDING if name in BLENDS else 0)


def test_operations_and_magnitudes_are_the_published_ones() -> None:
    half = 0.05, 0.95
    turn, third = (-30, 30), (-0.3, 0.3)
    assert {name: operation.magnitudes for name, operation in OPERATIONS.items()} == {
        **{"auto_contrast": None, "brightness": half, "colour": half, "contrast": half, "equalize": None},
        **{"identity": None, "posterize": (4, 8), "rotate": turn, "sharpness": half, "shear_x": third},
        **{"shear_y": third, "solarize": (0, 256), "translate_x": third, "translate_y": third},
    }


@pytest.mark.parametrize(
    ("operation", "enhance"),
    [
        (brightness, ImageEnhance.Brightness),
        (contrast, ImageEnhance.Contrast),
        (sharpness, ImageEnhance.Sharpness),
    ],
)
def test_blends_go_beyond_the_image_as_pillow_does(operation, enhance) -> None:
    images = make_images(16, 16, 12)
    factors = torch.linspace(0, 3, 12, dtype=torch.float64)
    for image, result, factor in zip(images, operation(images, factors), factors.tolist(), strict=True):
        assert deviation(result, from_pil(enhance(to_pil(image)).enhance(factor))) <= BLENDING


def test_a_right_angle_turns_counter_clockwise() -> None:
    images = make_images(9, 9, 4)
    right_angles = torch.full((4,), 90.0, dtype=torch.float64)
    assert torch.equal(rotate(images, right_angles), images.rot90(1, (2, 3)))


def test_a_batch_equals_pillow_image_by_image() -> None:
    images = make_images()
    chosen = torch.randint(len(OPERATIONS), (2, COUNT), generator=(again := draws(4)))
    uniform = torch.rand(2, COUNT, generator=again, dtype=torch.float64)
    results = RandomAugment()(images, draws(4))
    names = list(OPERATIONS)
    for number, image in enumerate(images):
        expected = to_pil(image)
        for step in range(2):
            name = names[int(chosen[step, number])]
            expected = PILLOW[name](expected, magnitude(name, float(uniform[step, number])))
        assert deviation(results[number], from_pil(expected)) <= 2 * BLENDING
    assert set(chosen.flatten().tolist()) == set(range(len(OPERATIONS)))


def test_cutouts_equal_pillow_at_the_drawn_places() -> None:
    images = make_images(20, 32, 200)
    uniform = torch.rand(3, 200, generator=draws(6), dtype=torch.float64).T
    for image, result, (size, across, down) in zip(
        images, Cutout()(images, draws(6)), uniform.tolist(), strict=True
    ):
        side = size * 0.5 * 32
        # numpy's uniform(32) lies between 32 and its default upper bound, 1
        left = int(max(0, 32 + (1 - 32) * across - side / 2))
        top = int(max(0, 20 + (1 - 20) * down - side / 2))
        expected = to_pil(image)
        corners = (left, top, min(32, left + side), min(20, top + side))
        ImageDraw.Draw(expected).rectangle(corners, (125, 123, 114))
        assert torch.equal(result, from_pil(expected))


def test_a_cutout_of_no_size_changes_nothing() -> None:
    images = make_images()
    assert torch.equal(Cutout(0.0)(images, draws()), images)


@pytest.mark.parametrize("transform", [RandomAugment(), RandomAugment(3), Cutout()])
def test_equal_draws_give_equal_images_whatever_else_is_drawn(transform) -> None:
    images = make_images()
    kept = images.clone()
    torch.manual_seed(1)
    first = transform(images, draws(2))
    torch.manual_seed(2)
    assert torch.equal(first, transform(images, draws(2)))
    assert not torch.equal(first, transform(images, draws(3)))
    assert torch.equal(images, kept)
    assert transform.random
    assert transform.output_size(32) == 32


def test_images_of_any_memory_layout_are_taken() -> None:
    images = make_images(16, 24)
    across = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for transform in (RandomAugment(), Cutout()):
        assert torch.equal(transform(across, draws(5)), transform(images, draws(5)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("transform", [RandomAugment(8), Cutout()])
def test_a_gpu_makes_the_same_images(transform) -> None:
    images = make_images()
    ours = transform(images.cuda(), draws(7))
    assert ours.is_cuda
    assert torch.equal(ours.cpu(), transform(images, draws(7)))
