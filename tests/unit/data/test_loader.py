"""The loader: equal seeds give equal batches, any step can be made on its own, nothing is counted twice."""

import pytest
import torch

from gda.data.cutout import Cutout
from gda.data.dataset import ImageSplit
from gda.data.loader import Batch, TensorLoader
from gda.data.pipeline import Pipeline
from gda.data.random_augment import RandomAugment
from gda.data.transforms import CenterCrop, HorizontalFlip, PadCrop, RandomResizedCrop, Resize, Transform
from gda.errors import UserError
from gda.seeding import generator

COUNT = 50


def make_loader(transforms: dict[str, Transform] | None = None, **options: object) -> TensorLoader:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 3, 16, 16), generator=draws, dtype=torch.uint8)
    split = ImageSplit(images, torch.arange(COUNT) % 7)
    return TensorLoader(split, transforms=transforms or {}, mean=[0.5] * 3, std=[0.25] * 3, **options)  # type: ignore[arg-type]


def make_training_loader(seed: int = 0, **options: object) -> TensorLoader:
    transforms = {
        "crop": RandomResizedCrop(16, interpolation="random"),
        "pad": PadCrop(2),
        "flip": HorizontalFlip(),
    }
    return make_loader(transforms, batch_size=8, seed=seed, shuffle=True, **options)


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.targets, b.targets)
        and torch.equal(a.indices, b.indices)
        for a, b in zip(one, other, strict=True)
    )


def test_equal_seeds_give_equal_batches_whatever_else_is_drawn() -> None:
    torch.manual_seed(1)
    first = list(make_training_loader().batches(3))
    torch.manual_seed(2)
    torch.rand(100)
    assert same(first, list(make_training_loader().batches(3)))
    assert not same(first, list(make_training_loader(seed=1).batches(3)))
    assert not same(first, list(make_training_loader().batches(4)))


def test_starting_at_a_step_equals_replaying_up_to_it() -> None:
    loader = make_training_loader()
    whole = list(loader.batches(2))
    for start in (0, 3, len(loader) - 1, len(loader)):
        assert same(list(make_training_loader().batches(2, start_step=start)), whole[start:])


def test_an_epoch_holds_every_image_once_and_epochs_differ() -> None:
    loader = make_training_loader()
    orders = [torch.cat([batch.indices for batch in loader.batches(epoch)]).tolist() for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(COUNT))
    assert orders[0] != orders[1]


def test_the_steps_of_an_epoch_draw_different_augmentations() -> None:
    images = torch.zeros(64, 3, 4, 4, dtype=torch.uint8)
    images[..., 0] = 255
    split = ImageSplit(images, torch.zeros(64, dtype=torch.int64))
    flip = {"flip": HorizontalFlip()}
    loader = TensorLoader(split, 32, flip, [0.5] * 3, [0.5] * 3, shuffle=True)
    first, second = (batch.images for batch in loader.batches(0))
    assert not torch.equal(first, second)


def test_drop_last_leaves_out_the_incomplete_batch() -> None:
    assert len(make_training_loader()) == 7
    loader = make_training_loader(drop_last=True)
    assert len(loader) == 6
    assert [len(batch.targets) for batch in loader.batches(0)] == [8] * 6


def test_evaluation_keeps_the_order_and_counts_every_image_once() -> None:
    loader = make_loader({"resize": Resize(18), "crop": CenterCrop(16)}, batch_size=16)
    batches = list(loader.batches())
    indices = torch.cat([batch.indices for batch in batches])
    assert indices.tolist() == list(range(COUNT))
    assert torch.cat([batch.targets for batch in batches]).tolist() == [each % 7 for each in range(COUNT)]
    assert len(batches) == len(loader) == 4
    assert same(batches, list(loader.batches(5)))


def test_the_evaluation_batch_size_changes_no_image() -> None:
    transforms = {"resize": Resize(18), "crop": CenterCrop(16)}
    one, other = (
        torch.cat([batch.images for batch in make_loader(transforms, batch_size=size).batches()])
        for size in (7, 50)
    )
    assert torch.equal(one, other)


def test_batches_are_normalised_float32_in_the_asked_memory_format() -> None:
    for channels_last in (False, True):
        loader = make_loader({"crop": CenterCrop(12)}, batch_size=8, channels_last=channels_last)
        batch = next(loader.batches())
        assert batch.images.dtype == torch.float32
        assert batch.targets.dtype == batch.indices.dtype == torch.int64
        assert batch.images.is_contiguous(memory_format=torch.channels_last) == channels_last
        pixels = loader.images[:8, :, 2:14, 2:14].float() / 255
        assert torch.allclose(batch.images, (pixels - 0.5) / 0.25, atol=1e-6)


def test_data_that_stays_in_memory_gives_the_same_batches() -> None:
    assert same(
        list(make_training_loader(resident=False).batches(0)), list(make_training_loader().batches(0))
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("resident", [True, False])
def test_a_gpu_makes_the_same_batches(resident: bool) -> None:
    ours = list(make_training_loader(device="cuda", resident=resident).batches(1))
    assert all(batch.images.is_cuda and batch.targets.is_cuda and batch.indices.is_cuda for batch in ours)
    for one, other in zip(ours, make_training_loader().batches(1), strict=True):
        assert torch.equal(one.indices.cpu(), other.indices)
        assert torch.allclose(one.images.cpu(), other.images, atol=1e-6)


def test_a_view_is_the_train_transforms_and_then_its_own() -> None:
    crop, augment = PadCrop(2), RandomAugment()  # both of one name: neither takes the other's place
    loader = make_loader(
        {"first": crop}, batch_size=8, shuffle=True, view_transforms={"strong": {"first": augment}}
    )
    indices = torch.tensor([3, 1, 4, 15, 9])
    draws = generator(0, "view", "strong", 2, 5)
    expected = augment(crop(loader.images[indices], draws), draws).float().div(255).sub(0.5).div(0.25)
    view = loader.view(indices, "strong", 2, 5)
    assert torch.allclose(view, expected, atol=1e-6)
    weak = Pipeline({"first": crop}, [0.5] * 3, [0.25] * 3)
    assert torch.equal(
        loader.view(indices, "second", 2, 5),
        weak(loader.images[indices], generator(0, "view", "second", 2, 5)),
    )


def test_views_depend_on_seed_and_step_alone_and_change_no_batch() -> None:
    strong = {"strong": {"augment": RandomAugment(), "cutout": Cutout()}}
    indices = torch.arange(COUNT)

    def view(epoch: int = 1, step: int = 2, **options: object) -> torch.Tensor:
        return make_training_loader(view_transforms=strong, **options).view(indices, "strong", epoch, step)

    torch.manual_seed(1)
    first = view()
    torch.manual_seed(2)
    assert torch.equal(first, view())
    assert all(not torch.equal(first, other) for other in (view(epoch=2), view(step=3), view(seed=1)))
    loader = make_training_loader(view_transforms=strong)
    batches = []
    for batch in loader.batches(1):
        batches.append(batch)
        loader.view(batch.indices, "strong", 1, len(batches))
    assert same(batches, list(make_training_loader().batches(1)))


def test_impossible_loaders_are_refused() -> None:
    with pytest.raises(UserError, match="random transforms: flip"):
        make_loader({"flip": HorizontalFlip()}, batch_size=8)
    with pytest.raises(UserError, match="drop_last"):
        make_loader(batch_size=8, drop_last=True)
    with pytest.raises(UserError, match="do not fill one batch of 64"):
        make_loader(batch_size=64, shuffle=True, drop_last=True)
