"""How many processes and parts a batch can be shared by, and what a run of several processes can't have."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gda.config.ranks import ranks_of

Config = dict[str, Any]
Compose = Callable[..., Config]
Faults = Callable[..., dict[str, str]]

RANKS, NODES, PARTS = "cluster.ranks_per_node", "cluster.nodes", "trainer.accumulation"
META = (
    *("dataset=digits_few_shot", "student=convnet4", "student.image_size=16", "teacher=resnet8"),
    *("task=meta_baseline", "recipe=digits_few_shot_meta", "tracking=none", "trainer.device=cpu"),
    *("encoder=classifier", "recipe@encoder.recipe=digits_few_shot_classifier"),
)


@pytest.mark.parametrize(
    ("cluster", "ranks"),
    [
        (None, 1),
        ({}, 1),
        ({"nodes": 3}, 3),
        ({"ranks_per_node": 4}, 4),
        ({"nodes": 3, "ranks_per_node": 4, "side_by_side": 7}, 12),
    ],
)
def test_processes_of_a_run(cluster: Config | None, ranks: int) -> None:
    assert ranks_of({} if cluster is None else {"cluster": cluster}) == ranks


# The tiny config has 60 training images in batches of 16: 12 in the last one.
@pytest.mark.parametrize(
    "changes",
    [
        {RANKS: 2},
        {NODES: 2},
        {PARTS: 2},
        {RANKS: 2, PARTS: 2},
        {RANKS: 4, PARTS: 2, "recipe.drop_last": True},
        {RANKS: 8, "recipe.drop_last": True},
        {RANKS: 3, "recipe.batch_size": 6},
        {RANKS: 2, "recipe.batch_size": 64},
    ],
)
def test_what_can_be_shared(changes: Config, faults: Faults) -> None:
    assert faults(changes) == {}


@pytest.mark.parametrize(
    ("changes", "where", "text"),
    [
        (
            {RANKS: 12},
            "recipe.batch_size",
            "recipe.batch_size: a batch of 16 images is too small for 12 processes: batch norm and alignment "
            "need 2 images in each. Try: recipe.batch_size=24",
        ),
        (
            {NODES: 2, RANKS: 2, PARTS: 5},
            "recipe.batch_size",
            "recipe.batch_size: a batch of 16 images is too small for 4 processes with 5 parts each: batch "
            "norm and alignment need 2 images in each. Try: recipe.batch_size=40",
        ),
        (
            {RANKS: 100},  # more processes than images
            "recipe.batch_size",
            "recipe.batch_size: a batch of 16 images is too small for 100 processes: batch norm and "
            "alignment need 2 images in each. Try: recipe.batch_size=200",
        ),
        (
            {RANKS: 3},
            "recipe.batch_size",
            "recipe.batch_size: a batch of 16 images can't be shared evenly by 3 processes. "
            "Try: recipe.batch_size=15, or 18",
        ),
        (
            {PARTS: 5},
            "recipe.batch_size",
            "recipe.batch_size: a batch of 16 images can't be shared evenly by 5 parts. "
            "Try: recipe.batch_size=15, or 20",
        ),
        (
            {RANKS: 2, PARTS: 3},
            "recipe.batch_size",
            "recipe.batch_size: a batch of 16 images can't be shared evenly by 2 processes with 3 parts "
            "each. Try: recipe.batch_size=12, or 18",
        ),
        (
            {RANKS: 4, PARTS: 2},  # 3 images for each process, 2 and 1 for its parts
            "recipe.drop_last",
            "recipe.drop_last: the last batch of an epoch would hold 12 images, too few for 4 processes with "
            "2 parts each (60 images in batches of 16). Try: recipe.drop_last=true",
        ),
        (
            {RANKS: 8},
            "recipe.drop_last",
            "recipe.drop_last: the last batch of an epoch would hold 12 images, too few for 8 processes "
            "(60 images in batches of 16). Try: recipe.drop_last=true",
        ),
        (
            {RANKS: 32, "recipe.batch_size": 64},
            "recipe.drop_last",
            "recipe.drop_last: the last batch of an epoch would hold 60 images, too few for 32 processes "
            "(60 images in batches of 64). Try: fewer processes, or trainer.accumulation=1",
        ),
    ],
)
def test_what_can_not_be_shared(changes: Config, where: str, text: str, faults: Faults) -> None:
    assert faults(changes) == {where: text}


def test_a_fault_is_told_once(faults: Faults) -> None:
    one_left = faults({RANKS: 2, "dataset.train_size": 61, "recipe.batch_size": 20})
    assert list(one_left) == ["recipe.batch_size"]
    assert "the last batch of an epoch would hold one image" in one_left["recipe.batch_size"]
    assert list(faults({RANKS: 2, "recipe.batch_size": 1})) == ["recipe.batch_size"]
    assert list(faults({RANKS: 0})) == [RANKS]
    assert list(faults({PARTS: 0})) == [PARTS]


@pytest.mark.parametrize("here", ["local", "local_ddp"])
def test_synchronised_batch_norm_needs_gpus(
    here: str, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {RANKS: 2, "trainer.sync_batch_norm": True, "cluster.name": here}
    on_cpu = faults(asked)
    assert list(on_cpu) == ["trainer.sync_batch_norm"]
    assert "for GPUs only" in on_cpu["trainer.sync_batch_norm"]
    assert on_cpu["trainer.sync_batch_norm"].endswith("Try: trainer.sync_batch_norm=false")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert list(faults({**asked, "trainer.device": "auto"})) == ["trainer.sync_batch_norm"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert faults({**asked, "trainer.device": "auto"}) == {}
    assert faults({**asked, RANKS: 1}) == {}  # idle


def test_synchronised_batch_norm_of_a_job_depends_on_its_gpus(
    faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this machine has says nothing of the nodes where a job will run."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = {
        RANKS: 2,
        "trainer.sync_batch_norm": True,
        "trainer.device": "auto",
        "cluster.name": "slurm_ddp",
    }
    assert faults({**asked, "cluster.gpus_per_node": 2}) == {}
    assert list(faults({**asked, "cluster.gpus_per_node": 0})) == ["trainer.sync_batch_norm"]


def test_an_optimiser_of_two_gradients_takes_whole_batches(faults: Faults) -> None:
    assert list(faults({PARTS: 2}, "distiller=dot")) == [PARTS]
    assert faults({RANKS: 2}, "distiller=dot") == {}
    assert faults({PARTS: 2}, "distiller=kd") == {}


def meta(compose: Compose, *overrides: str) -> dict[str, str]:
    from gda.config.check import check

    chosen = dict(each.split("=", 1) for each in (*META, *overrides))
    config = compose(*(f"{key}={value}" for key, value in chosen.items()))
    return {fault.where: str(fault) for fault in check(config)}


def test_episodes_are_shared_whole(compose: Compose) -> None:
    assert meta(compose, f"{RANKS}=2") == {}
    found = meta(compose, f"{RANKS}=3", "encoder.recipe.batch_size=24", "encoder.recipe.drop_last=true")
    where = "task.train_episodes_per_batch"
    assert found == {
        where: f"{where}: 4 episodes can't be shared evenly by 3 processes. Try: {where}=3, or 6"
    }
    found = meta(compose, f"{RANKS}=4", f"{PARTS}=2", "encoder.recipe.drop_last=true")
    assert found["task.train_episodes_per_batch"].endswith("Try: task.train_episodes_per_batch=8")


def test_the_stage_before_has_a_batch_of_its_own(compose: Compose) -> None:
    found = meta(compose, f"{RANKS}=2", "encoder.recipe.batch_size=33")
    assert list(found) == ["encoder.recipe.batch_size"]
    assert found["encoder.recipe.batch_size"].endswith("Try: encoder.recipe.batch_size=32, or 34")


def test_episodes_that_are_not_pooled_have_no_global_scope(compose: Compose) -> None:
    asked = (f"{RANKS}=2", "alignment=gda", "alignment.sinkhorn.scope=global")
    found = meta(compose, *asked)
    assert list(found) == ["alignment.sinkhorn.scope"]
    assert "task.pool_episodes=true" in found["alignment.sinkhorn.scope"]
    assert meta(compose, *asked, "task.pool_episodes=true") == {}
    assert meta(compose, *asked, "alignment=fisher_rao") == {}  # without Sinkhorn
    assert meta(compose, *asked[1:]) == {}  # one process


def test_a_scope_is_local_or_global(faults: Faults) -> None:
    assert faults({RANKS: 2, "alignment.sinkhorn.scope": "global"}) == {}
    assert list(faults({"alignment.sinkhorn.scope": "everywhere"})) == ["alignment.sinkhorn.scope"]
