"""Figures of an epoch: weighted by images over all ranks, and each rank's own through an interruption."""

import io
from typing import Any

import pytest
import torch
from forked_ranks import on_ranks
from torch import nn

from gda.tasks.task import StepOutput
from gda.training.epoch import EpochSums

CPU = torch.device("cpu")
# Loss, a term, and images of each step of each rank; the second rank has fewer.
STEPS = (((0.5, 3.0, 5), (0.125, 7.0, 4)), ((0.3, 1.0, 4), (0.7, -2.0, 3)))


def outputs(rank: int) -> list[StepOutput]:
    return [
        StepOutput(torch.tensor(loss, requires_grad=True), {"kd": torch.tensor(term)}, images, {})
        for loss, term, images in STEPS[rank]
    ]


def modules(value: float) -> list[nn.Module]:
    norm = nn.BatchNorm1d(2)
    assert norm.running_mean is not None
    norm.running_mean.fill_(value)
    return [nn.Sequential(nn.Linear(2, 2), norm)]


def written_and_read(state: Any) -> Any:
    """As a checkpoint does it, without running code."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def work(rank: int) -> dict[str, Any]:
    first, second = outputs(rank)
    through, before = EpochSums(), EpochSums()
    through.add(first)
    through.add(second)
    before.add(first)
    state = written_and_read(before.state(modules(10.0 + rank)))
    fresh = modules(-1.0)
    after = EpochSums.restored(state, fresh, CPU)
    images = after.images
    after.add(second)
    return {
        "means": through.means(),
        "resumed": after.means(),
        "state": state,
        "images": images,
        "statistics": fresh[0][1].running_mean,  # type: ignore[index]
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found; they are started once."""
    return on_ranks(2, work, tmp_path_factory.mktemp("ranks"))


def expected(*ranks: int) -> tuple[dict[str, float], int]:
    steps = [step for rank in ranks for step in STEPS[rank]]
    images = sum(count for *_, count in steps)
    loss, term = (sum(step[which] * step[2] for step in steps) / images for which in (0, 1))
    return {"train_loss": loss, "term/kd": term}, images


def test_means_of_one_process_weigh_images() -> None:
    sums = EpochSums()
    for output in outputs(0):
        sums.add(output)
    figures, images = sums.means()
    assert (figures, images, sums.images) == (pytest.approx(expected(0)[0], rel=1e-7), 9, 9)


def test_means_of_ranks_are_those_of_all_images(found: list[dict[str, Any]]) -> None:
    figures, images = expected(0, 1)
    for each in found:
        assert each["means"] == (pytest.approx(figures, rel=1e-7), images)
    assert found[0]["means"] == found[1]["means"], "to the last bit"


def test_the_state_holds_what_every_rank_has_of_its_own(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert [of_rank["images"] for of_rank in each["state"]] == [5, 4]
        assert [of_rank["statistics"][0].tolist() for of_rank in each["state"]] == [[10.0] * 2, [11.0] * 2]
        assert [of_rank["sums"]["term/kd"].item() for of_rank in each["state"]] == [15.0, 4.0]


def test_a_rank_goes_on_with_its_own(found: list[dict[str, Any]]) -> None:
    assert [each["images"] for each in found] == [5, 4]
    assert [each["statistics"].tolist() for each in found] == [[10.0] * 2, [11.0] * 2]
    for each in found:
        assert each["resumed"] == each["means"], "to the last bit"


def test_sums_are_kept_in_double_precision() -> None:
    sums = EpochSums()
    for loss in (2.0**24, 1.0, 1.0):  # float32 would lose both ones
        sums.add(StepOutput(torch.tensor(loss), {}, 1, {}))
    assert sums.means()[0]["train_loss"] == (2.0**24 + 2) / 3


def test_a_state_is_no_view_of_what_goes_on_changing() -> None:
    sums, trained = EpochSums(), modules(1.0)
    sums.add(outputs(0)[0])
    state = sums.state(trained)
    trained[0][1].running_mean.fill_(5.0)  # type: ignore[index,union-attr,operator]
    sums.add(outputs(0)[1])
    assert state[0]["statistics"][0].tolist() == [1.0, 1.0]
    assert state[0]["sums"]["train_loss"].item() == 2.5
