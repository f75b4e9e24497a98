"""`cluster=local_parallel` and `cluster=local_ddp`: runs in processes of their own, which may die."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launching import Child, until

Launch = Callable[..., Child]

pytestmark = pytest.mark.cluster  # slow: `make test-cluster`


PLAIN = ("teacher=none", "distiller=vanilla", "alignment=none")


def cells(runs: Path) -> dict[str, Path]:
    """The run folders of the newest sweep's cells, by their title."""
    newest = max((runs / "main/sweeps").glob("*/plan.json"))
    return {cell["title"]: runs / "main" / cell["folder"] for cell in json.loads(newest.read_text())["cells"]}


def status(folder: Path) -> dict[str, Any]:
    path = folder / "status.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    assert isinstance(content, dict)
    return content


def states(runs: Path) -> dict[str, str | None]:
    return {title: status(folder).get("state") for title, folder in cells(runs).items()}


def until_trained(runs: Path, *titles: str) -> Path:
    """Waits until cells have saved an epoch and train the next; returns the folder of the last."""
    until(lambda: any((runs / "main/sweeps").glob("*/plan.json")))
    folders = [cells(runs)[title] for title in titles]
    until(lambda: all(status(folder).get("epoch", 0) >= 1 for folder in folders))
    return folders[-1]


def holder(folder: Path) -> int:
    pid = json.loads((folder / "run.lock").read_text())["pid"]
    assert isinstance(pid, int)
    return pid


def test_a_grid_side_by_side_ends_as_one_after_the_other(
    start: Launch, tmp_path: Path, tiny: Callable[..., dict[str, Any]]
) -> None:
    grid = ("cluster=local_parallel", "distiller=kd,dkd", "seed=0,1")
    first = start(*grid)
    first.until("[3/5]")  # five processes import torch: its patience each time
    first.until("[5/5]")
    assert first.wait() == 0, first.output
    assert "4 cells: 0 finished before, 4 to run" in first.output
    assert "made first, because cells build on it: teacher resnet8 seed 0" in first.output
    lines = first.output.splitlines()
    assert lines.index("started: teacher resnet8 seed 0") < next(
        at for at, line in enumerate(lines) if line.startswith("started: ") and "distiller" in line
    )
    assert sum(line.startswith("[") and "] done: " in line and " test top-1 " in line for line in lines) == 5
    runs = tmp_path / "runs"
    assert list(states(runs).values()) == ["done"] * 4
    (sweep,) = (runs / "main/sweeps").iterdir()
    assert {path.name for path in sweep.iterdir()} == {"plan.json", "code.json", "jobs", "logs"}
    assert len(list((sweep / "logs").iterdir())) == 5
    for folder in cells(runs).values():
        assert json.loads((folder / "run.json").read_text())["sweep"] == f"main/{sweep.name}"

    from gda.app import finish

    alone = finish(tiny("distiller=dkd", "seed=1", f"runs={tmp_path / 'alone'}")).folder
    beside = runs / "main" / alone.parent.name / alone.name
    assert (beside / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()

    again = start(*grid, "report=true")
    assert again.wait() == 0, again.output
    assert "4 cells: 4 finished before, 0 to run" in again.output
    assert "started" not in again.output
    assert (runs / "main/report/report.md").exists()


def test_a_cell_that_fails_and_one_that_is_killed_stop_no_other(start: Launch, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = start("cluster=local_parallel", *PLAIN, "recipe.epochs=20", "recipe.lr=0.05,0.06,1e30")
    victim = until_trained(runs, "recipe.lr=0.05")
    os.kill(holder(victim), signal.SIGKILL)
    assert first.wait() == 1, first.output
    assert "1 of 3 cells are finished" in first.output
    failures = [line for line in first.output.splitlines() if line.startswith("failed: ")]
    assert ["SIGKILL" in line for line in failures] == [True, False]
    assert failures[0].startswith("failed: recipe.lr=0.05 (")
    assert failures[1].startswith("failed: recipe.lr=1e+30 (NonFiniteLoss: ")
    assert states(runs) == {"recipe.lr=0.05": "failed", "recipe.lr=0.06": "done", "recipe.lr=1e+30": "failed"}
    assert "SIGKILL" in status(victim)["error"]

    again = start("cluster=local_parallel", *PLAIN, "recipe.epochs=20", "recipe.lr=0.05,0.06")
    assert again.wait() == 0, again.output
    assert "2 cells: 1 finished before, 1 to run" in again.output
    assert status(victim)["state"] == "done"
    assert status(victim)["attempt"] == 2


def test_after_ctrl_c_the_same_command_goes_on(start: Launch, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    command = ("cluster=local_parallel", *PLAIN, "recipe.epochs=30", "seed=0,1,2")
    first = start(*command)
    until_trained(runs, "seed=0", "seed=1")
    first.kill(signal.SIGINT)
    assert first.wait() == 130, first.output
    assert "SIGINT: waiting for 2 runs to save" in first.output
    assert "the same command continues" in first.output
    assert states(runs) == {"seed=0": "interrupted", "seed=1": "interrupted", "seed=2": None}

    again = start(*command)
    assert again.wait() == 0, again.output
    assert set(states(runs).values()) == {"done"}
    assert "continuing after epoch" in (cells(runs)["seed=0"] / "run.log").read_text()


def test_a_command_that_is_killed_takes_its_runs_with_it(start: Launch, tmp_path: Path) -> None:
    child = start("cluster=local_parallel", *PLAIN, "recipe.epochs=500")
    folder = until_trained(tmp_path / "runs", "single cell")
    child.kill()
    until(lambda: status(folder)["state"] == "interrupted")


def test_two_ranks_are_stopped_together_and_go_on(start: Launch, tmp_path: Path) -> None:
    command = ("cluster=local_ddp", *PLAIN, "recipe.epochs=20")
    first = start(*command)
    folder = until_trained(tmp_path / "runs", "single cell")
    first.kill(signal.SIGINT)
    assert first.wait() == 130, first.output
    assert status(folder)["state"] == "interrupted"
    again = start(*command)
    assert again.wait() == 0, again.output
    assert [
        json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ] == list(range(21))


def test_a_rank_that_is_killed_takes_the_run_down(start: Launch, tmp_path: Path) -> None:
    child = start("cluster=local_ddp", *PLAIN, "recipe.epochs=500")
    folder = until_trained(tmp_path / "runs", "single cell")
    os.kill(holder(folder), signal.SIGKILL)  # of the ranks, the one that writes
    assert child.wait() == 1, child.output
    assert status(folder)["state"] == "failed"
    assert "failed: single cell (" in child.output
