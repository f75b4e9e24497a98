"""Episodes: drawn by seed, epoch and step alone, uniformly, without replacement, where there is enough."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from gda.data.few_shot.episodes import EpisodeSampler, published_episodes, query_targets, split_shot_query
from gda.errors import UserError

# Class ids with gaps, of 6 to 9 images each, mixed: nothing may rely on blocks or on equal counts.
COUNTS = {2: 6, 3: 9, 5: 7, 11: 6, 40: 8}
TARGETS = torch.tensor([label for label, count in COUNTS.items() for _ in range(count)])
TARGETS = TARGETS[torch.randperm(len(TARGETS), generator=torch.Generator().manual_seed(5))]


def make_sampler(seed: int = 0, **options: int) -> EpisodeSampler:
    settings = {"way": 3, "shot": 2, "query": 4, "episodes_per_batch": 4, "batches": 6} | options
    return EpisodeSampler(TARGETS, seed=seed, **settings)


def all_batches(sampler: EpisodeSampler, epoch: int = 0) -> Tensor:
    return torch.stack(list(sampler.batches(epoch)))


def test_an_episode_holds_distinct_classes_with_distinct_images_each() -> None:
    episodes = all_batches(make_sampler())
    assert episodes.shape == (6, 4, 3, 6)
    labels = TARGETS[episodes]
    assert torch.equal(labels, labels[..., :1].expand_as(labels))
    for episode in episodes.flatten(0, 1):
        assert len(TARGETS[episode[:, 0]].unique()) == 3
        assert len(episode.unique()) == 18


def test_seed_epoch_and_step_decide_and_nothing_else_does() -> None:
    first = all_batches(make_sampler(), epoch=3)
    torch.manual_seed(7)
    np.random.seed(7)
    sampler = make_sampler()
    all_batches(sampler, epoch=1)  # a sampler that has been used already
    assert torch.equal(first, all_batches(sampler, epoch=3))
    # The published code seeds by the epoch alone: other seeds would see the same episodes.
    assert not torch.equal(first, all_batches(make_sampler(seed=1), epoch=3))
    assert not torch.equal(first, all_batches(make_sampler(), epoch=4))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first[4:], torch.stack(list(make_sampler().batches(3, start_step=4))))


@pytest.mark.parametrize("ranks", [2, 4])
def test_processes_share_the_episodes_of_one(ranks: int) -> None:
    whole = all_batches(make_sampler())
    shares = [all_batches(make_sampler(rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert {share.shape[1] for share in shares} == {4 // ranks}
    assert torch.equal(whole, torch.cat(shares, dim=1))


def test_every_order_of_classes_and_every_image_is_equally_likely() -> None:
    targets = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    sampler = EpisodeSampler(targets, 2, 1, 1, episodes_per_batch=6000, batches=1)
    episodes = sampler.batch(0, 0)
    pairs = Counter(map(tuple, targets[episodes[:, :, 0]].tolist()))
    assert pairs.keys() == set(permutations(range(3), 2))
    # 6 orders of probability 1/6: the standard deviation of a count is 29.
    assert all(abs(count - 1000) < 5 * 29 for count in pairs.values())
    for label, count in enumerate([3, 2, 4]):
        members = (targets == label).nonzero().flatten().tolist()
        drawn = episodes[targets[episodes[:, :, 0]] == label]
        found = Counter(map(tuple, drawn.tolist()))
        assert found.keys() == set(permutations(members, 2))
        expected = len(drawn) / (count * (count - 1))
        assert all(abs(each - expected) < 5 * expected**0.5 for each in found.values())


def test_an_episode_may_take_all_classes_and_all_images() -> None:
    targets = torch.arange(3).repeat(4)
    episode = EpisodeSampler(targets, 3, 1, 3, episodes_per_batch=1).batch(0, 0)
    assert episode.flatten().sort().values.tolist() == list(range(12))


def test_positions_are_those_that_occur() -> None:
    sampler = make_sampler(batches=1, episodes_per_batch=1, shot=1, query=1)
    expected = {each for epoch in (2, 3) for each in all_batches(sampler, epoch).flatten().tolist()}
    assert sampler.positions(2, 2).tolist() == sorted(expected)
    assert len(expected) < len(TARGETS)


def test_classes_with_too_few_images_are_named() -> None:
    with pytest.raises(UserError, match=r"takes 7 images.*class 2 has 6, class 11 has 6;"):
        make_sampler(query=5)
    names = [f"sort {label}" for label in range(41)]
    with pytest.raises(UserError, match="class 'sort 2' has 6, class 'sort 11' has 6;"):
        EpisodeSampler(TARGETS, 3, 2, 5, classes=names)
    with pytest.raises(UserError, match=r"class 4 has 2 and 7 more have too few;"):
        EpisodeSampler(torch.arange(12).repeat(2), 3, 1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"way": 6}, "6 classes can't be drawn from a split of 5; way can be 5 at most"),
        ({"way": 0, "shot": 0}, "not way=0, shot=0"),
        ({"query": 0}, "not query=0"),
        ({"batches": 0}, "not batches=0"),
        ({"ranks": 3}, "3 processes can't share 4 episodes evenly; take a multiple of 3"),
    ],
)
def test_impossible_episodes_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_sampler(**options)


def test_fingerprints_tell_episodes_apart() -> None:
    expected = make_sampler().fingerprint
    assert make_sampler(rank=1, ranks=2).fingerprint == expected
    others = [
        make_sampler(seed=1),
        make_sampler(shot=1),
        make_sampler(query=3),
        make_sampler(way=2),
        make_sampler(batches=7),
        make_sampler(episodes_per_batch=2),
        EpisodeSampler(TARGETS.flip(0), 3, 2, 4, 4, 6),
    ]
    assert len({expected, *(each.fingerprint for each in others)}) == 8


def test_shots_come_before_queries_and_queries_go_class_by_class() -> None:
    values = torch.arange(2 * 3 * 5 * 7).view(2, 3, 5, 7)
    shots, queries = split_shot_query(values, 2)
    assert shots.shape == (2, 3, 2, 7)
    assert queries.shape == (2, 9, 7)
    targets = query_targets(2, 3, 3)
    for episode in range(2):
        for label in range(3):
            assert torch.equal(shots[episode, label], values[episode, label, :2])
            assert torch.equal(queries[episode, targets[episode] == label], values[episode, label, 2:])


def test_the_published_sampler_refuses_what_episodes_can_not_be_drawn_from() -> None:
    draws = np.random.RandomState(0)
    with pytest.raises(UserError, match="class 1 has 0"):
        next(published_episodes(torch.tensor([0, 0, 2, 2]), 2, 2, 1, 1, draws))
    with pytest.raises(UserError, match="3 classes can't be drawn from a split of 2"):
        next(published_episodes(torch.tensor([0, 0, 1, 1]), 3, 2, 1, 1, draws))
