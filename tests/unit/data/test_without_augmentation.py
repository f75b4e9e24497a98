"""The last epoch without augmentation: images of the right size, the same ones every time."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from gda.data.pipeline import Pipeline
from gda.data.random_augment import RandomAugment
from gda.data.resample import resize
from gda.data.transforms import (
    CenterCrop,
    HorizontalFlip,
    PadCrop,
    RandomResizedCrop,
    Resize,
    Transform,
    without_augmentation,
)
from gda.errors import UserError

SIZE = 20
STATISTICS = ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])

RECIPES: dict[str, tuple[Mapping[str, Transform | None], int]] = {
    "nothing": ({}, SIZE),
    "shift": ({"crop": PadCrop(2)}, SIZE),
    "flip": ({"flip": HorizontalFlip()}, SIZE),
    "resized_crop_and_flip": ({"crop": RandomResizedCrop(16), "flip": HorizontalFlip()}, 16),
    "resized_crop_of_the_same_size": ({"crop": RandomResizedCrop(SIZE)}, SIZE),
    "larger": ({"crop": RandomResizedCrop(28), "augment": RandomAugment()}, 28),
    "several_sizes": ({"resize": Resize(32), "shift": PadCrop(4), "crop": CenterCrop(12)}, 12),
    "back_to_the_first_size": ({"resize": Resize(32), "crop": RandomResizedCrop(SIZE)}, SIZE),
    "left_out": ({"crop": None, "resize": Resize(18), "flip": None}, 18),
    "all_left_out": ({"crop": None}, SIZE),
}
all_recipes = pytest.mark.parametrize(("transforms", "size"), RECIPES.values(), ids=RECIPES)


@pytest.fixture
def images() -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, 3, SIZE, SIZE), generator=draws, dtype=torch.uint8)


def seen(transforms: Mapping[str, Transform | None], images: Tensor, seed: int) -> Tensor:
    return Pipeline(transforms, *STATISTICS)(images, torch.Generator().manual_seed(seed))


@all_recipes
def test_images_come_out_resized_and_otherwise_as_they_are(
    transforms: Mapping[str, Transform | None], size: int, images: Tensor
) -> None:
    plain = without_augmentation(transforms, SIZE)
    as_they_are = images if size == SIZE else resize(images, size, size)
    assert torch.equal(seen(plain, images, seed=1), seen({}, as_they_are, seed=2))


@all_recipes
def test_they_have_the_size_of_the_augmented_ones_and_no_randomness(
    transforms: Mapping[str, Transform | None], size: int, images: Tensor
) -> None:
    plain = without_augmentation(transforms, SIZE)
    assert seen(plain, images, seed=1).shape == seen(transforms, images, seed=1).shape
    assert Pipeline(plain, *STATISTICS).random == []
    assert torch.equal(seen(plain, images, seed=1), seen(plain, images, seed=2))
    if Pipeline(transforms, *STATISTICS).random:
        assert not torch.equal(seen(plain, images, seed=1), seen(transforms, images, seed=1))


def test_nothing_is_done_to_images_of_the_right_size() -> None:
    assert without_augmentation({"crop": PadCrop(), "flip": HorizontalFlip(1.0)}, SIZE) == {}
    (only,) = without_augmentation({"crop": RandomResizedCrop(16)}, SIZE).values()
    assert isinstance(only, Resize)
    assert only.size == 16


def test_the_transforms_that_it_gets_stay_as_they_are() -> None:
    transforms: dict[str, Transform | None] = {"crop": RandomResizedCrop(16), "flip": HorizontalFlip()}
    before = dict(transforms)
    without_augmentation(transforms, SIZE)
    assert transforms == before


def test_a_crop_that_is_larger_than_what_reaches_it_is_refused() -> None:
    with pytest.raises(UserError, match="can't cut 16 pixels out of images of 12"):
        without_augmentation({"resize": Resize(12), "crop": CenterCrop(16)}, SIZE)
