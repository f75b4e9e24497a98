"""A run that only measures: what it writes, in which order, and what is left when it stops halfway."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from gda.config.schema import TrainerSettings
from gda.errors import UserError
from gda.tasks.few_shot_test import TestFigures
from gda.tasks.task import Figure
from gda.tracking.run_folder import RunFolder
from gda.training.evaluation import EPISODES, Evaluation

CPU = torch.device("cpu")
SHARES = torch.tensor([0.2, 0.9, 0.4, 0.5], dtype=torch.float64)


class Toy:
    """Measures nothing of use; writes down within which precision it was asked."""

    figure = Figure("1shot", "5-way 1-shot accuracy")

    def __init__(self, fails: int = 0) -> None:
        self.fails = fails
        self.asked: list[torch.dtype | None] = []

    def measure(self) -> TestFigures:
        enabled = torch.is_autocast_enabled("cpu")
        self.asked.append(torch.get_autocast_dtype("cpu") if enabled else None)
        if len(self.asked) <= self.fails:
            raise RuntimeError("no more memory")
        return TestFigures(
            {"test_1shot": 50.0, "test_1shot_interval": 2.5, "base_test_top1": 70.0},
            {"test_1shot": SHARES, "test_1shot_auc": torch.stack([SHARES, SHARES])[:, 1]},
            {"test_1shot": "aa:4", "test_1shot_auc": "bb:2"},
        )


def settings(precision: Any = "float32") -> TrainerSettings:
    return TrainerSettings("cpu", precision, None, False, False, True, 1, 10)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.begin({}, {"seed": 0}, 1)
    return folder


def lines(folder: RunFolder, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.path / name).read_text().splitlines()]


def test_the_journal_has_one_row_and_the_result_is_made_of_it(folder: RunFolder) -> None:
    result = Evaluation(Toy(), settings(), folder, CPU).fit()
    row = {"epoch": 1, "test_1shot": 50.0, "test_1shot_interval": 2.5, "base_test_top1": 70.0}
    assert lines(folder, "metrics.jsonl") == [row]
    assert result == {"last": row, "best": None, "test_1shot_oracle": 50.0, "oracle_epoch": 1}
    (timing,) = lines(folder, "timing.jsonl")
    assert set(timing) == {"epoch", "evaluate_seconds"}
    assert timing["evaluate_seconds"] >= 0
    assert (folder.status()["state"], folder.status()["epoch"]) == ("running", 1)
    folder.finish(result)
    assert folder.is_done()
    assert folder.status()["result"] == result


def test_the_episodes_are_kept_with_their_fingerprints(folder: RunFolder) -> None:
    Evaluation(Toy(), settings(), folder, CPU).fit()
    with safe_open(folder.path / EPISODES, "pt") as file:
        assert file.metadata() == {"test_1shot": "aa:4", "test_1shot_auc": "bb:2"}
        assert torch.equal(file.get_tensor("test_1shot"), SHARES)
        assert file.get_tensor("test_1shot_auc").tolist() == [0.9, 0.9]  # though it was not contiguous
        assert file.get_tensor("test_1shot").dtype == torch.float64


def test_everything_is_on_disk_when_the_mirror_is_told(folder: RunFolder) -> None:
    seen: list[tuple[int, bool]] = []

    def told() -> None:
        seen.append((len(lines(folder, "metrics.jsonl")), (folder.path / EPISODES).is_file()))

    Evaluation(Toy(), settings(), folder, CPU, told).fit()
    assert seen == [(1, True)]


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float32", None), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
    ids=["float32", "bfloat16", "float16"],
)
def test_it_measures_in_the_precision_of_the_run(
    precision: str, dtype: torch.dtype | None, folder: RunFolder
) -> None:
    toy = Toy()
    Evaluation(toy, settings(precision), folder, CPU).fit()
    assert toy.asked == [dtype]


def test_one_that_failed_leaves_no_figure_and_can_be_tried_again(folder: RunFolder) -> None:
    evaluation = Evaluation(Toy(fails=1), settings(), folder, CPU)
    with pytest.raises(RuntimeError, match="no more memory") as failure:
        evaluation.fit()
    folder.fail(failure.value)
    assert folder.status()["state"] == "failed"
    assert folder.status()["error"] == "RuntimeError: no more memory"
    assert lines(folder, "metrics.jsonl") == []
    assert not (folder.path / EPISODES).exists()
    folder.begin({}, {"seed": 0}, 1)
    folder.finish(evaluation.fit())
    assert folder.is_done()
    assert (folder.status()["attempt"], folder.status()["error"]) == (2, None)
    assert len(lines(folder, "metrics.jsonl")) == 1


@pytest.mark.parametrize("place", ["episodes", "journal"])
def test_one_that_was_killed_while_writing_measures_again(
    place: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    evaluation = Evaluation(Toy(), settings(), folder, CPU)
    with monkeypatch.context() as patch:
        if place == "episodes":
            patch.setattr("gda.training.evaluation.write_bytes_atomic", killed)
        else:
            patch.setattr(folder, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluation.fit()
    assert lines(folder, "metrics.jsonl") == []
    assert not folder.is_done()
    evaluation.fit()
    evaluation.fit()  # killed between its row and its mark
    assert len(lines(folder, "metrics.jsonl")) == 1


def test_a_process_that_lost_its_folder_writes_nothing(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost() -> None:
        raise UserError("taken over")

    monkeypatch.setattr(folder, "require_ownership", lost)
    with pytest.raises(UserError, match="taken over"):
        Evaluation(Toy(), settings(), folder, CPU).fit()
    assert lines(folder, "metrics.jsonl") == []
    assert not (folder.path / EPISODES).exists()
