"""`attempts.jsonl` and `status.json`: when attempts began and how they ended, and who was there."""

import datetime
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from gda.tracking import run_folder
from gda.tracking.run_folder import RunFolder, slurm_job_id

SLURM = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT")


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "study" / "name" / "seed0")


def begin(folder: RunFolder) -> None:
    folder.begin({"seed": 0}, {"study": "study"}, epochs=3)


def row(epoch: int) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"epoch": epoch, "test_top1": 10.0 * epoch}, {"epoch": epoch, "train_seconds": 1.0}


def attempts(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.path / "attempts.jsonl").read_text().splitlines()]


def test_an_attempt_begins_with_who_and_where(folder: RunFolder) -> None:
    begin(folder)
    (line,) = attempts(folder)
    assert datetime.datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {
        "attempt": 1,
        "event": "begin",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "slurm_job": None,
        "restart": 0,
        "epoch": 0,
        "step": 0,
    }
    assert folder.status()["state"] == "running"


@pytest.mark.parametrize("end", ["interrupt", "preempt"])
def test_a_stop_is_noted_where_it_was_and_the_next_attempt_begins_there(end: str, folder: RunFolder) -> None:
    begin(folder)
    folder.append(*row(1))
    folder.saved_within(7)
    getattr(folder, end)()
    begin(folder)
    folder.append(*row(2))
    folder.finish({"last": {}})
    state = {"interrupt": "interrupted", "preempt": "preempted"}[end]
    lines = [(each["attempt"], each["event"], each["epoch"], each["step"]) for each in attempts(folder)]
    assert lines == [(1, "begin", 0, 0), (1, state, 1, 7), (2, "begin", 1, 7), (2, "done", 2, 0)]
    status = folder.status()
    assert (status["state"], status["attempt"], status["epoch"]) == ("done", 2, 2)


def test_the_place_in_the_epoch_is_in_the_status_until_the_epoch_ends(folder: RunFolder) -> None:
    begin(folder)
    assert folder.status().get("step", 0) == 0
    folder.saved_within(5)
    assert (folder.status()["epoch"], folder.status()["step"], folder.status()["state"]) == (0, 5, "running")
    folder.append(*row(1))
    assert (folder.status()["epoch"], folder.status()["step"]) == (1, 0)


def test_a_failure_ends_an_attempt_with_its_first_line(folder: RunFolder) -> None:
    begin(folder)
    folder.fail(ValueError("bad\nand more of it"))
    last = attempts(folder)[-1]
    assert (last["attempt"], last["event"], last["error"]) == (1, "failed", "ValueError: bad")
    begin(folder)
    assert folder.status()["error"] is None, "a new attempt has not failed"
    folder.interrupt()
    assert attempts(folder)[-1]["error"] is None


def test_an_attempt_that_was_killed_has_no_end(folder: RunFolder) -> None:
    begin(folder)
    folder.append(*row(1))
    begin(folder)
    assert [(each["attempt"], each["event"]) for each in attempts(folder)] == [(1, "begin"), (2, "begin")]
    assert attempts(folder)[-1]["epoch"] == 1


def test_a_torn_line_is_no_obstacle(folder: RunFolder) -> None:
    begin(folder)
    with (folder.path / "attempts.jsonl").open("a") as file:
        file.write('{"attempt": 1, "event": "inter')
    begin(folder)
    folder.finish({"last": {}})
    whole = run_folder.read_json_lines(folder.path / "attempts.jsonl")
    assert [(each["attempt"], each["event"]) for each in whole] == [(1, "begin"), (2, "begin"), (2, "done")]


@pytest.mark.parametrize(
    ("variables", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "17"}, "17"),
        ({"SLURM_JOB_ID": "19", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "0"}, "17_0"),
    ],
)
def test_a_job_is_named_as_slurm_names_it(
    variables: dict[str, str], job: str | None, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**variables, "SLURM_RESTART_COUNT": "2"}.items():
        monkeypatch.setenv(name, value)
    assert slurm_job_id() == job
    begin(folder)
    (line,) = attempts(folder)
    assert (line["slurm_job"], line["restart"]) == (job, 2)


def test_a_full_disk_hides_no_failure_but_a_result_must_be_written(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(folder)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder, "append_line", full)
    folder.interrupt()
    folder.fail(ValueError("bad"))
    with pytest.raises(OSError, match="No space"):
        folder.finish({"last": {}})
