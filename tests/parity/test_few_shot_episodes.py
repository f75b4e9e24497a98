"""Episodes and their interval against golden figures of the published few-shot implementation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.random import RandomState
from torch import Tensor

from gda.data.few_shot.episodes import EpisodeSampler, published_episodes, query_targets, split_shot_query
from gda.errors import UserError
from gda.tasks.episode_metrics import confidence_interval

GOLDEN = json.loads((Path(__file__).parent / "golden" / "few_shot_data_and_schedule.json").read_text())

SEQUENCES = {
    "sampler[block 8x20,seed0]": torch.arange(8).repeat_interleave(20),
    "sampler[cycle 6x7,seed0]": torch.arange(6).repeat(7),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_the_published_sequence_of_episodes_is_drawn_from_numpys_generator(name: str) -> None:
    recorded = GOLDEN[name]
    draws = RandomState(0)
    way, per_class = recorded["n_cls"], recorded["n_per"]
    episodes = recorded.get("ep_per_batch", 1)

    def one_pass() -> list[Tensor]:
        batches = recorded["n_batch"]
        return list(published_episodes(SEQUENCES[name], way, per_class, episodes, batches, draws))

    for part in ("batches", "second_pass"):
        found = one_pass()
        assert {batch.shape for batch in found} == {(episodes, way, per_class)}
        assert [batch.flatten().tolist() for batch in found] == recorded[part]
    assert draws.rand() == recorded["numpy_uniform_after"]


@pytest.mark.parametrize("name", SEQUENCES)
def test_our_episodes_have_the_layout_of_the_published_ones(name: str) -> None:
    recorded, targets = GOLDEN[name], SEQUENCES[name]
    way, per_class = recorded["n_cls"], recorded["n_per"]
    episodes = recorded.get("ep_per_batch", 1)
    sampler = EpisodeSampler(targets, way, 1, per_class - 1, episodes, recorded["n_batch"])
    assert len(sampler) == recorded["len"]
    published = [torch.tensor(batch).view(episodes, way, per_class) for batch in recorded["batches"]]
    for batch in (*published, *sampler.batches()):
        assert batch.shape == (episodes, way, per_class)
        labels = targets[batch]
        assert torch.equal(labels, labels[:, :, :1].expand_as(labels))
        for episode in batch:
            assert len(targets[episode[:, 0]].unique()) == way
            assert len(episode.unique()) == way * per_class


def test_what_the_published_sampler_stumbles_over_is_an_error_that_names_the_class() -> None:
    for name in ("sampler[gap in class ids]", "sampler[too few per class]"):
        assert GOLDEN[name]["error"] == "ValueError"  # from within the epoch, when the class is drawn
    gap = torch.tensor(GOLDEN["sampler[gap in class ids]"]["label"])
    with pytest.raises(UserError, match="class 1 has 0"):
        next(published_episodes(gap, 2, 2, 1, 1, RandomState(0)))
    # Our sampler takes the classes that there are.
    assert gap[EpisodeSampler(gap, 2, 1, 1).batch(0, 0)].unique().tolist() == [0, 2]
    with pytest.raises(UserError, match="class 0 has 4, class 2 has 4"):
        EpisodeSampler(gap, 2, 1, 4)


@pytest.mark.parametrize(
    ("name", "way", "query", "episodes"),
    [("n5_k3_ep1", 5, 3, 1), ("n5_k2_ep4", 5, 2, 4), ("n3_k4_ep2", 3, 4, 2)],
)
def test_queries_are_labelled_class_by_class(name: str, way: int, query: int, episodes: int) -> None:
    assert query_targets(episodes, way, query).flatten().tolist() == GOLDEN["episode_labels"][name]


@pytest.mark.parametrize(
    ("name", "way", "shot", "episodes"),
    [("way5_shot1_query15_ep4_img3x8x8", 5, 1, 4), ("way3_shot2_query2_ep2_img1x1x1", 3, 2, 2)],
)
def test_shots_and_queries_come_from_the_recorded_rows(name: str, way: int, shot: int, episodes: int) -> None:
    recorded: dict[str, Any] = GOLDEN["split"][name]
    rows, *image = recorded["in_shape"]
    source = torch.arange(rows, dtype=torch.float32)[:, None, None, None].expand(rows, *image)
    shots, queries = split_shot_query(source.unflatten(0, (episodes, way, -1)), shot)
    assert list(shots.shape) == recorded["shot_shape"]
    assert list(queries.shape) == recorded["query_shape"]
    assert shots[..., 0, 0, 0].flatten().tolist() == recorded["shot_source_rows"]
    assert queries[..., 0, 0, 0].flatten().tolist() == recorded["query_source_rows"]


@pytest.mark.parametrize("level", [95, 90])
def test_half_widths_of_the_mean_equal_the_published_ones(level: int) -> None:
    for recorded in GOLDEN[f"confidence_half_width_{level}"]:
        values = torch.tensor(recorded["data"], dtype=torch.float64)
        found = confidence_interval(values, level / 100).half_width
        assert found == pytest.approx(recorded["value"], rel=1e-12, abs=1e-15)
