"""Batches that several processes share, and batches that are taken in parts: nothing is lost or doubled."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gda.data.dataset import ImageSplit
from gda.data.few_shot.episode_loader import EpisodeBatch, EpisodeLoader
from gda.data.few_shot.episodes import EpisodeSampler
from gda.data.loader import Batch, TensorLoader
from gda.data.pipeline import Pipeline
from gda.data.transforms import HorizontalFlip, PadCrop, Transform
from gda.seeding import generator

COUNT, BATCH = 50, 12
STATISTICS = {"mean": [0.5] * 3, "std": [0.25] * 3}
RANDOM: dict[str, Transform | None] = {"crop": PadCrop(2), "flip": HorizontalFlip()}


def split_of(count: int = COUNT) -> ImageSplit:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=draws, dtype=torch.uint8)
    return ImageSplit(images, torch.arange(count) % 7)


def loader_of(
    rank: int = 0, ranks: int = 1, transforms: dict[str, Transform | None] | None = None, **options: bool
) -> TensorLoader:
    named = {"shuffle": True, **options}
    chosen = RANDOM if transforms is None else transforms
    return TensorLoader(split_of(), BATCH, chosen, **STATISTICS, seed=3, rank=rank, ranks=ranks, **named)


def joined(batches: Sequence[Batch]) -> list[Tensor]:
    return [torch.cat([getattr(each, name) for each in batches]) for name in ("images", "targets", "indices")]


def assert_equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    for each, expected in zip(one, other, strict=True):
        assert torch.equal(each, expected)


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_processes_share_the_batches_of_one_in_rank_order(ranks: int) -> None:
    whole = list(loader_of(transforms={}).batches(4))
    shares = [list(loader_of(rank, ranks, {}).batches(4)) for rank in range(ranks)]
    for step, batch in enumerate(whole):
        of_step = [share[step] for share in shares]
        assert_equal(joined(of_step), joined([batch]))
        assert {each.total for each in of_step} == {len(batch)}
        sizes = [len(each) for each in of_step]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] - sizes[-1] <= 1
    assert len(whole[-1]) == 2  # an incomplete batch, of which some have nothing
    assert [len(loader_of(rank, ranks)) for rank in range(ranks)] == [len(whole)] * ranks


def test_every_process_augments_by_itself() -> None:
    """Flips and crops of equal images at equal places of two shares: they would be equal, if draws were."""
    one = split_of(1)
    same = ImageSplit(one.images.repeat(64, 1, 1, 1), one.targets.repeat(64))
    shares = [
        next(TensorLoader(same, 64, RANDOM, **STATISTICS, shuffle=True, rank=rank, ranks=2).batches())
        for rank in (0, 1)
    ]
    assert not torch.equal(shares[0].images, shares[1].images)


def test_a_share_is_drawn_again_wherever_one_starts() -> None:
    whole = list(loader_of(1, 2).batches(2))
    later = list(loader_of(1, 2).batches(2, start_step=3))
    assert_equal(joined(later), joined(whole[3:]))


def test_one_process_draws_what_it_always_drew() -> None:
    pipeline = Pipeline(RANDOM, STATISTICS["mean"], STATISTICS["std"])
    for step, batch in enumerate(loader_of().batches(2)):
        images = pipeline(split_of().images[batch.indices], generator(3, "augmentation", 2, step))
        assert torch.equal(batch.images, images)
        assert batch.total == len(batch)


def test_views_differ_between_processes_and_parts() -> None:
    indices = torch.arange(12)
    views = [loader_of(rank, 2).view(indices, "second", 1, 2, part) for rank in (0, 1) for part in (0, 1)]
    for place, view in enumerate(views):
        assert all(torch.equal(view, other) == (place == number) for number, other in enumerate(views))
    assert torch.equal(views[0], loader_of().view(indices, "second", 1, 2))


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_an_evaluation_is_shared_by_whole_batches(ranks: int) -> None:
    loader = loader_of(transforms={}, shuffle=False)
    whole = list(loader.batches())
    shares = [list(loader.share(rank, ranks)) for rank in range(ranks)]
    steps = [step for share in shares for step, _ in share]
    assert sorted(steps) == list(range(len(whole)))
    assert steps[: len(shares[0])] == list(range(0, len(whole), ranks))
    for share in shares:
        for step, batch in share:
            assert_equal(joined([batch]), joined([whole[step]]))
    assert (shares[-1] == []) == (ranks > len(whole))


def test_a_training_loader_is_not_shared_by_batches() -> None:
    with pytest.raises(ValueError, match="shared by images"):
        next(loader_of().share(0, 2))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_parts_of_a_batch_are_the_batch(count: int) -> None:
    batch = next(loader_of(1, 2, channels_last=True).batches())
    parts = batch.parts(count)
    assert len(parts) == count
    assert_equal(joined(parts), joined([batch]))
    assert {part.total for part in parts} == {BATCH}
    sizes = [len(part) for part in parts]
    assert sum(sizes) == len(batch) == 6
    assert max(sizes) - min(sizes) <= 1
    assert all(part.images.is_contiguous(memory_format=torch.channels_last) for part in parts)


def test_weighted_means_of_shares_and_parts_are_the_mean_of_the_batch() -> None:
    """As a trainer weights them: a part by its images, times the processes that are averaged over."""
    whole, ranks = list(loader_of(transforms={}).batches()), 2
    for step in (0, len(whole) - 1):
        shares = [list(loader_of(rank, ranks, {}).batches())[step] for rank in range(ranks)]
        parts = [part for share in shares for part in share.parts(min(2, len(share)))]
        weighted = [part.images.double().mean() * (len(part) * ranks / part.total) for part in parts]
        torch.testing.assert_close(torch.stack(weighted).sum() / ranks, whole[step].images.double().mean())


def test_more_parts_than_images_are_refused() -> None:
    with pytest.raises(ValueError, match="12 images can't be split into 13 parts"):
        next(loader_of().batches()).parts(13)


def episode_batch(rank: int = 0, ranks: int = 1) -> EpisodeBatch:
    sampler = EpisodeSampler(split_of().targets, 3, 2, 4, 6, 5, seed=1, rank=rank, ranks=ranks)
    return EpisodeLoader(split_of(), sampler, RANDOM, **STATISTICS).batch(2, 1)


def tensors(batch: EpisodeBatch) -> list[Tensor]:
    return [batch.shots, batch.queries, batch.targets, batch.indices]


def test_processes_share_whole_episodes_and_know_the_queries_of_all() -> None:
    whole, shares = episode_batch(), [episode_batch(rank, 3) for rank in range(3)]
    assert_equal([torch.cat(each) for each in zip(*map(tensors, shares), strict=True)], tensors(whole))
    assert [len(share) for share in shares] == [2 * 3 * 4] * 3
    assert {share.total for share in shares} == {len(whole)} == {6 * 3 * 4}
    assert len(whole) == len(whole.queries.flatten(0, 1))


@pytest.mark.parametrize("count", [1, 3, 4])
def test_parts_of_a_batch_of_episodes_are_whole_episodes(count: int) -> None:
    batch = episode_batch()
    parts = batch.parts(count)
    assert len(parts) == count
    assert_equal([torch.cat(each) for each in zip(*map(tensors, parts), strict=True)], tensors(batch))
    assert {part.total for part in parts} == {len(batch)}
    assert sum(len(part) for part in parts) == len(batch)
    with pytest.raises(ValueError, match="6 episodes can't be split into 7 parts"):
        batch.parts(7)
