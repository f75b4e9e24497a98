"""What several processes have to do with a run's group: they are part of it, where they change its result."""

from collections.abc import Callable
from typing import Any

import pytest

from gda.config.identity import identify
from gda.config.inputs import identify_run

Changed = Callable[..., dict[str, Any]]

TWO = {"cluster.ranks_per_node": 2}


@pytest.fixture
def group(changed: Changed) -> Callable[..., str]:
    return lambda *arguments: identify_run(changed(*arguments)).group


def test_a_run_of_several_processes_is_another(group: Callable[..., str]) -> None:
    groups = [group({"cluster.ranks_per_node": ranks}) for ranks in (1, 2, 4)]
    assert len(set(groups)) == 3
    assert groups[0] == group()
    assert group({"cluster.nodes": 2}) == groups[1]  # where they run says nothing
    assert group({"cluster.nodes": 2, **TWO}) == groups[2]


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer.sync_batch_norm": True},
        {"alignment.sinkhorn.scope": "global"},
        {"trainer.find_unused_parameters": True},
        {"trainer.accumulation": 1},
        {"cluster.side_by_side": 4},
    ],
)
def test_what_says_nothing_of_one_process(changes: dict[str, Any], group: Callable[..., str]) -> None:
    assert group(changes) == group()


@pytest.mark.parametrize(
    "changes", [{"trainer.sync_batch_norm": True}, {"alignment.sinkhorn.scope": "global"}]
)
def test_what_counts_with_several(changes: dict[str, Any], group: Callable[..., str]) -> None:
    assert group({**TWO, **changes}) != group(TWO)


def test_defaults_and_idle_options_of_several(group: Callable[..., str], changed: Changed) -> None:
    alone = group(TWO)
    assert group({**TWO, "trainer.find_unused_parameters": True}) == alone
    assert group({**TWO, "alignment.sinkhorn.scope": "global"}, "alignment=none") == group(
        TWO, "alignment=none"
    )
    bare = changed(TWO)
    for option in ("accumulation", "sync_batch_norm", "find_unused_parameters"):
        del bare["trainer"][option]
    del bare["alignment"]["sinkhorn"]["scope"]
    assert identify_run(bare).group == alone


def test_parts_of_a_batch_count(group: Callable[..., str]) -> None:
    assert len({group({"trainer.accumulation": parts}) for parts in (1, 2, 4)}) == 3


def test_baselines_have_as_many_processes(changed: Changed) -> None:
    one, two = (identify(changed({"cluster.ranks_per_node": ranks}), "w") for ranks in (1, 2))
    assert two.twin_group == identify(changed(TWO, "alignment=none"), "w").group != one.twin_group
    vanilla = changed(TWO, "alignment=none", "distiller=vanilla", "teacher=none")
    assert two.vanilla_group == identify(vanilla).group != one.vanilla_group


def test_a_scope_of_a_users_own_term_is_its_own(changed: Changed) -> None:
    """Only Sinkhorn's scope is about processes."""
    groups = []
    for scope in ("layer", "block"):
        config = changed()
        config["distiller"]["terms"]["mine"] = {
            "_target_": "gda.distillers.kd.KD",
            "weight": 1.0,
            "scope": scope,
        }
        groups.append(identify(config, "w").group)
    assert groups[0] != groups[1]
