"""Batches of episodes: the images at the sampler's indices, augmented alike wherever they are made."""

import pytest
import torch

from gda.data.dataset import ImageSplit
from gda.data.few_shot.episode_loader import EpisodeBatch, EpisodeLoader
from gda.data.few_shot.episodes import EpisodeSampler, split_shot_query
from gda.data.pipeline import Pipeline
from gda.data.transforms import HorizontalFlip, PadCrop, Resize, Transform
from gda.seeding import generator

TARGETS = torch.randperm(40, generator=torch.Generator().manual_seed(5)) % 5


def make_sampler(**options: int) -> EpisodeSampler:
    return EpisodeSampler(TARGETS, 3, 2, 4, episodes_per_batch=4, batches=6, **options)


def make_loader(
    sampler: EpisodeSampler, transforms: dict[str, Transform] | None = None, **options: bool
) -> EpisodeLoader:
    draws = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (len(TARGETS), 3, 8, 8), generator=draws, dtype=torch.uint8)
    return EpisodeLoader(
        ImageSplit(images, TARGETS), sampler, transforms or {}, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], **options
    )


def same(one: EpisodeBatch, other: EpisodeBatch) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("shots", "queries", "targets", "indices")
    )


def test_batches_are_the_images_at_the_indices() -> None:
    sampler = make_sampler()
    loader = make_loader(sampler, {"resize": Resize(6)})
    batches = list(loader.batches(2))
    assert len(batches) == len(loader) == 6
    for step, batch in enumerate(batches):
        assert torch.equal(batch.indices, sampler.batch(2, step))
        pixels = Resize(6)(loader.images[batch.indices.flatten()], torch.Generator()).double() / 255
        mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
        expected = (pixels - mean[:, None, None]) / std[:, None, None]
        expected = expected.view(4, 3, 6, 3, 6, 6).float()
        torch.testing.assert_close(batch.shots, expected[:, :, :2], atol=1e-5, rtol=0)
        torch.testing.assert_close(batch.queries, expected[:, :, 2:].flatten(1, 2), atol=1e-5, rtol=0)
        classes = TARGETS[batch.indices[:, :, 0]]
        found = torch.gather(classes, 1, batch.targets)
        assert torch.equal(found, TARGETS[batch.indices[:, :, 2:]].flatten(1))


def test_any_batch_can_be_made_on_its_own_augmentation_included() -> None:
    transforms: dict[str, Transform] = {"crop": PadCrop(2), "flip": HorizontalFlip()}
    whole = list(make_loader(make_sampler(), transforms).batches(1))
    for start in (0, 4, 6):
        rest = list(make_loader(make_sampler(), transforms).batches(1, start_step=start))
        assert len(rest) == 6 - start
        assert all(same(one, other) for one, other in zip(rest, whole[start:], strict=True))
    assert same(make_loader(make_sampler(), transforms, resident=False).batch(1, 3), whole[3])


def test_augmentation_is_the_same_however_many_processes_share_a_batch() -> None:
    transforms: dict[str, Transform] = {"crop": PadCrop(2), "flip": HorizontalFlip()}
    whole = make_loader(make_sampler(), transforms).batch(0, 1)
    plain = make_loader(make_sampler()).batch(0, 1)
    assert torch.equal(whole.indices, plain.indices)
    assert not torch.equal(whole.queries, plain.queries)
    for rank in range(2):
        share = make_loader(make_sampler(rank=rank, ranks=2), transforms).batch(0, 1)
        assert torch.equal(share.shots, whole.shots[2 * rank : 2 * rank + 2])
        assert torch.equal(share.queries, whole.queries[2 * rank : 2 * rank + 2])
        assert torch.equal(share.targets, whole.targets[2 * rank : 2 * rank + 2])


def test_each_episode_and_step_has_augmentation_of_its_own() -> None:
    images = torch.zeros(len(TARGETS), 3, 4, 4, dtype=torch.uint8)
    images[..., 0] = 255
    loader = EpisodeLoader(
        ImageSplit(images, TARGETS), make_sampler(), {"flip": HorizontalFlip()}, [0.5] * 3, [0.5] * 3
    )
    first, second = loader.batch(0, 0).queries, loader.batch(0, 1).queries
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    draws = generator(0, "augmentation", 0, 1, 0)
    pipeline = Pipeline({"flip": HorizontalFlip()}, [0.5] * 3, [0.5] * 3)
    expected = pipeline(images[:18], draws).unflatten(0, (1, 3, 6))
    assert torch.equal(split_shot_query(expected, 2)[1][0], second[0])


def test_a_sampler_of_another_split_is_refused() -> None:
    split = ImageSplit(torch.zeros(len(TARGETS), 3, 8, 8, dtype=torch.uint8), TARGETS.flip(0))
    with pytest.raises(ValueError, match="other targets"):
        EpisodeLoader(split, make_sampler(), {}, [0.5] * 3, [0.5] * 3)
