"""Running statistics of batch norm: which they are, and their mean over ranks."""

from typing import Any

import pytest
import torch
from forked_ranks import on_ranks
from torch import nn

from gda.training.batch_statistics import average_statistics, statistics_of


def trained() -> list[nn.Module]:
    """Batch norm at several depths, of several kinds; one without statistics, one with none at all."""
    student = nn.Sequential(
        nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.ReLU())
    )
    term = nn.ModuleDict({"norm": nn.BatchNorm1d(4), "blind": nn.BatchNorm1d(5, track_running_stats=False)})
    return [student, term, nn.Linear(2, 2)]


def filled(rank: int) -> list[nn.Module]:
    modules = trained()
    for number, each in enumerate(statistics_of(modules)):
        each.copy_(torch.arange(each.numel()) + 10.0 * number + 0.5 * rank)
    for module in modules:
        for name, buffer in module.named_buffers():
            if name.endswith("num_batches_tracked"):
                buffer.fill_(7)
    return modules


def state_of(modules: list[nn.Module]) -> list[dict[str, Any]]:
    return [dict(module.state_dict()) for module in modules]


def work(rank: int) -> dict[str, Any]:
    modules = filled(rank)
    before = statistics_of(modules)
    average_statistics(modules)
    kept = all(one is other for one, other in zip(before, statistics_of(modules), strict=True))
    average_statistics([nn.Linear(2, 2)])  # nothing to average: no rank waits
    return {"state": state_of(modules), "kept": kept}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What three processes found; they are started once."""
    return on_ranks(3, work, tmp_path_factory.mktemp("ranks"))


def test_statistics_are_found_at_every_depth_in_a_fixed_order() -> None:
    modules = trained()
    assert [each.numel() for each in statistics_of(modules)] == [2, 2, 3, 3, 4, 4]
    statistics_of(modules)[1].fill_(9.0)
    assert modules[0].state_dict()["1.running_var"].tolist() == [9.0, 9.0], "they are no copies"


def test_every_rank_gets_the_mean(found: list[dict[str, Any]]) -> None:
    expected = state_of(filled(1))  # the middle one
    others = state_of(filled(0))
    for each in found:
        assert each["kept"], "modules keep their buffers"
        for state, wanted, first in zip(each["state"], expected, others, strict=True):
            for name, value in wanted.items():
                if "running" in name:
                    assert torch.equal(state[name], value), name
                    assert not torch.equal(state[name], first[name])
                elif "num_batches" in name:
                    assert state[name].item() == 7


def test_one_process_keeps_its_own() -> None:
    modules = filled(0)
    before = {name: value.clone() for name, value in modules[0].state_dict().items()}
    average_statistics(modules)
    assert all(torch.equal(value, before[name]) for name, value in modules[0].state_dict().items())
