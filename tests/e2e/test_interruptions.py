"""A run that is killed, interrupted or damaged at any moment ends as one that never was."""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import Child, Hook, until

Launch = Callable[..., Child]
# Several checkpoints, a validation curve with ups and downs, momentum, an average and a term with a ramp.
SETTINGS = (
    "recipe.epochs=3",
    "dataset.train_size=40",
    "distiller=aug_conf",
    "alignment=gda",
    "trainer.ema_decay=0.9",
    "seed=2",
)


@pytest.fixture
def command(teacher_weights: Path) -> tuple[str, ...]:
    return (*SETTINGS, f"teacher.checkpoint={teacher_weights}")


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., dict[str, Any]], teacher_weights: Path
) -> Path:
    """The folder of the same run, never interrupted."""
    runs = tmp_path_factory.mktemp("whole")
    from gda.app import finish

    return finish(tiny(*SETTINGS, f"teacher.checkpoint={teacher_weights}", f"runs={runs}")).folder


def run_folder(runs: Path) -> Path:
    (folder,) = (path for path in runs.glob("runs/main/*/seed*"))
    return folder


def status(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "status.json").read_text())
    assert isinstance(content, dict)
    return content


def assert_same_run(folder: Path, whole: Path) -> None:
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for name in ("last.pt", "best.pt"):
        one, other = (torch.load(path / name, weights_only=True) for path in (folder, whole))
        assert_same(one, other)
    assert status(folder)["state"] == "done"
    assert status(folder)["result"] == status(whole)["result"]


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def test_the_uninterrupted_run_has_something_to_lose(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert len({row["test_loss"] for row in rows[1:]}) == 3


@pytest.mark.parametrize(
    "hook",
    [
        Hook("before best.pt", 1),
        Hook("after best.pt", 1),
        Hook("before last.pt", 2),
        Hook("after last.pt", 1),
        Hook("after last.pt", 3),
        Hook("torn metrics.jsonl", 3),
        Hook("after metrics.jsonl", 3),
        Hook("after timing.jsonl", 2),
    ],
    ids=lambda hook: f"{hook.point} {hook.count}",
)
def test_killed_at_a_delicate_point(
    hook: Hook, start: Launch, command: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    killed = start(*command, hook=hook)
    assert killed.wait() == -signal.SIGKILL, killed.output
    assert status(run_folder(tmp_path))["state"] == "running"
    again = start(*command)
    assert again.wait() == 0, again.output
    assert_same_run(run_folder(tmp_path), whole)
    assert status(run_folder(tmp_path))["attempt"] == 2


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments(
    seed: int, start: Launch, command: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    draws = random.Random(seed)
    for _ in range(3):
        child = start(*command)
        until(
            lambda child=child: (
                bool(list(tmp_path.glob("runs/main/*/seed*/status.json")))
                or child.process.exitcode is not None
            )
        )
        time.sleep(draws.uniform(0.0, 1.0))
        if child.process.exitcode is None:
            child.kill()
        assert child.wait() in (0, -signal.SIGKILL), child.output
    last = start(*command)
    assert last.wait() == 0, last.output
    assert_same_run(run_folder(tmp_path), whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_by_a_signal(
    number: int, start: Launch, command: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    child = start(*command, hook=Hook("before timing.jsonl", 2, gate=gate))
    until(lambda: len(list(tmp_path.glob("runs/main/*/seed*/metrics.jsonl"))) == 1 and rows(tmp_path) == 3)
    child.kill(number)  # between checkpoint and journal: noted, and obeyed after the next step
    gate.touch()
    assert child.wait() == 130, child.output
    folder = run_folder(tmp_path)
    assert status(folder)["state"] == "interrupted"
    assert "Traceback" not in child.output
    (line,) = (line for line in child.output.splitlines() if "Interrupted" in line)
    assert "the same command continues it" in line
    assert not (folder / "run.lock").exists()
    again = start(*command)
    assert again.wait() == 0, again.output
    assert "continuing after epoch 2, step 1 of the next" in (folder / "run.log").read_text()
    assert_same_run(folder, whole)
    events = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]
    assert [(each["attempt"], each["event"], each["epoch"], each["step"]) for each in events] == [
        (1, "begin", 0, 0),
        (1, "interrupted", 2, 1),
        (2, "begin", 2, 1),
        (2, "done", 3, 0),
    ]


def rows(runs: Path) -> int:
    return len((run_folder(runs) / "metrics.jsonl").read_bytes().splitlines())


@pytest.mark.parametrize("damaged", [("last.pt",), ("last.pt", "previous.pt")])
def test_a_damaged_checkpoint_falls_back_and_says_so(
    damaged: tuple[str, ...], start: Launch, command: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    assert start(*command, hook=Hook("after timing.jsonl", 3)).wait() == -signal.SIGKILL
    folder = run_folder(tmp_path)
    for name in damaged:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 0xFF
        (folder / name).write_bytes(data[:-100] if name == "previous.pt" else data)
    again = start(*command)
    assert again.wait() == 0, again.output
    assert "last.pt" in again.output
    assert "damaged" in again.output
    assert ("starts again from its first epoch" in again.output) == (len(damaged) == 2)
    assert ("continuing after epoch 2" in (folder / "run.log").read_text()) == (len(damaged) == 1)
    assert (folder / "last.pt.damaged").exists()
    assert_same_run(folder, whole)


def test_a_finished_run_returns_at_once_and_changes_nothing(
    start: Launch, command: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole.parents[2], tmp_path / "runs")
    folder = run_folder(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    child = start(*command, "trainer.threads=2", "recipe.evaluation_batch_size=100")
    assert child.wait() == 0, child.output
    assert "finished before" in child.output
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
