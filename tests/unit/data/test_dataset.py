"""Stratified seeded shares: exact counts, disjoint, reproducible."""

import pytest
import torch

from gda.data.dataset import ImageSplit, allocate, hold_out, take
from gda.errors import UserError


def make_split(counts: list[int]) -> ImageSplit:
    """Images whose first pixels spell out their position, so that they can be told apart."""
    targets = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))]
    images = torch.zeros(len(targets), 3, 1, 1, dtype=torch.uint8)
    positions = torch.arange(len(targets))
    images[:, 0, 0, 0], images[:, 1, 0, 0] = positions % 256, positions // 256
    return ImageSplit(images, targets)


def positions(split: ImageSplit) -> list[int]:
    return (split.images[:, 0, 0, 0].int() + 256 * split.images[:, 1, 0, 0].int()).tolist()


def counts(split: ImageSplit) -> list[int]:
    return split.targets.bincount().tolist()


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
def test_held_out_images_are_disjoint_complete_and_stratified(share: float) -> None:
    split = make_split([100, 200, 40])
    train, validation = hold_out(split, share, seed=1)
    assert validation is not None
    assert counts(validation) == [round(share * count) for count in (100, 200, 40)]
    assert sorted(positions(train) + positions(validation)) == list(range(340))
    assert positions(train) == sorted(positions(train))
    assert torch.equal(validation.targets, split.targets[positions(validation)])


def test_the_choice_depends_on_the_seed_alone() -> None:
    split = make_split([50, 50])
    torch.manual_seed(0)
    first = hold_out(split, 0.2, seed=1)[1]
    torch.manual_seed(7)
    second = hold_out(split, 0.2, seed=1)[1]
    other = hold_out(split, 0.2, seed=2)[1]
    assert first is not None
    assert second is not None
    assert other is not None
    assert positions(first) == positions(second) != positions(other)


def test_share_zero_holds_nothing_out() -> None:
    split = make_split([3, 3])
    assert hold_out(split, 0.0, seed=0) == (split, None)


def test_every_class_gives_and_keeps_an_image() -> None:
    train, validation = hold_out(make_split([500, 2, 2]), 0.01, seed=0)
    assert validation is not None
    assert counts(validation) == [3, 1, 1]  # 1 % is 5 images
    assert counts(train) == [497, 1, 1]


def test_a_class_that_is_too_small_is_named() -> None:
    with pytest.raises(UserError, match="class 1"):
        hold_out(make_split([10, 1]), 0.2, seed=0)


def test_a_share_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="must be left"):
        hold_out(make_split([4, 4]), 0.95, seed=0)


@pytest.mark.parametrize(("size", "expected"), [(30, [10, 20]), (0.5, [50, 100])])
def test_take_is_exact_and_stratified(size: float, expected: list[int]) -> None:
    subset = take(make_split([100, 200]), size, seed=3)
    assert counts(subset) == expected
    assert positions(subset) == positions(take(make_split([100, 200]), size, seed=3))


def test_take_all_is_everything_and_more_is_refused() -> None:
    split = make_split([5, 7])
    assert positions(take(split, 12, seed=0)) == list(range(12))
    assert positions(take(split, 1.0, seed=0)) == list(range(12))
    with pytest.raises(UserError, match="13 of 12"):
        take(split, 13, seed=0)
    with pytest.raises(UserError, match="1 of 12"):
        take(split, 1, seed=0)


def test_allocation_sums_up_and_stays_near_the_proportion() -> None:
    draws = torch.Generator().manual_seed(0)
    for _ in range(50):
        sizes = torch.randint(3, 60, (8,), generator=draws).tolist()
        total = int(torch.randint(8, sum(sizes) - 8, (), generator=draws))
        chosen = allocate(sizes, total, leave=1)
        assert sum(chosen) == total
        for size, number in zip(sizes, chosen, strict=True):
            assert 1 <= number <= size - 1


def test_wrong_types_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        ImageSplit(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="int64"):
        ImageSplit(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
