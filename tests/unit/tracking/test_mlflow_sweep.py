import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from run_folders import write_run, write_status

from gda.tracking.mlflow_ship import ship
from gda.tracking.mlflow_tags import PARENT_TAG, SWEEP_TAG, tags_of

FIRST, SECOND = "2024-05-06_07-08-09", "2024-05-07_10-00-00"

# Processes that each ship one run of each of two sweeps. For the second sweep there is no lock, and
# nobody makes its parent before all have looked for one.
SHIP = """
import contextlib, os, sys, time, traceback
from pathlib import Path
from gda.tracking.mlflow_ship import ship
from gda.tracking.mlflow_sweep import Sweep
uri, here, runs = sys.argv[1], Path(sys.argv[2]), [Path(each) for each in sys.argv[3:]]
import mlflow.store.tracking.sqlalchemy_store  # once for all: this is what takes time
from mlflow import MlflowClient

def wait_for_all(step):
    (here / f"{step}-{os.getpid()}").touch()
    deadline = time.monotonic() + 60
    while len(list(here.glob(f"{step}-*"))) < len(runs) / 2:
        assert time.monotonic() < deadline, step
        time.sleep(0.002)

create = MlflowClient.create_run
before_making = lambda: time.sleep(0.3)  # time enough for the others to find no parent

def create_run(self, *args, tags, **kwargs):
    if tags.get("kind") == "sweep":
        before_making()
    return create(self, *args, tags=tags, **kwargs)

def work(guarded, unguarded):
    global before_making
    MlflowClient.create_run = create_run
    wait_for_all("ready")
    ship(guarded, uri)
    wait_for_all("guarded")
    Sweep.guard = lambda self: contextlib.nullcontext()
    before_making = lambda: wait_for_all("create")
    ship(unguarded, uri)

children = []
for pair in zip(runs[::2], runs[1::2]):
    children.append(os.fork())
    if children[-1] == 0:
        try:
            work(*pair)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def in_sweep(folder: Path, number: str, **facts: Any) -> Path:
    """Says in a run's folder that it belongs to a sweep."""
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sweep": f"demo/{number}", **facts}))
    return folder


def write_plan(runs: Path, number: str, seeds: int, created: str = "2024-05-06T07:08:09+0000") -> Path:
    """Writes the plan of a sweep over seeds."""
    folder = runs / "demo" / "sweeps" / number
    folder.mkdir(parents=True)
    cells = [{"folder": f"kd-resnet20-0a1b2c/seed{seed}"} for seed in range(seeds)]
    (folder / "plan.json").write_text(json.dumps({"created": created, "cells": cells}))
    return folder


def search(uri: str, condition: str, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    client = MlflowClient(uri)
    found = [client.get_experiment_by_name(name) for name in ("demo", "teachers")]
    return list(client.search_runs([each.experiment_id for each in found if each], condition, view))


def parents(uri: str, view: int = ViewType.ACTIVE_ONLY) -> dict[str, Run]:
    return {run.info.run_id: run for run in search(uri, "tags.kind = 'sweep'", view)}


def children(uri: str, number: str) -> list[Run]:
    return search(uri, f"tags.`{SWEEP_TAG}` = 'demo/{number}'")


def test_the_runs_of_a_sweep_lie_below_one_parent(tmp_path: Path, uri: str) -> None:
    runs = tmp_path / "runs"
    write_plan(runs, FIRST, seeds=3)
    folders = [in_sweep(write_run(runs, seed=seed, epochs=2), FIRST) for seed in range(3)]
    for folder in folders:
        ship(folder, uri)
    (parent,) = parents(uri).values()
    assert parent.info.run_name == f"sweep {FIRST}"
    assert parent.info.start_time == 1714979289000
    assert parent.data.tags["cells"] == "3"
    assert parent.data.tags["study"] == "demo"
    assert len(search(uri, f"tags.sweep = 'demo/{FIRST}'")) == 4
    found = children(uri, FIRST)
    assert {run.data.tags["seed"] for run in found} == {"0", "1", "2"}
    assert {run.data.tags[PARENT_TAG] for run in found} == {parent.info.run_id}
    assert all(not ship(folder, uri, verify=True).changed for folder in folders)

    for folder in folders:
        assert search(uri, "tags.kind = 'sweep'")[0].info.status == "RUNNING"
        write_status(folder, "done", 1)
        ship(folder, uri)
    (parent,) = parents(uri).values()
    assert parent.info.status == "FINISHED"
    assert parent.info.end_time == int(1000 * (folders[-1] / "status.json").stat().st_mtime)


def test_a_requeue_keeps_its_sweep_and_a_later_sweep_takes_over(tmp_path: Path, uri: str) -> None:
    runs = tmp_path / "runs"
    write_plan(runs, FIRST, seeds=2)
    done = in_sweep(write_run(runs, seed=0, epochs=2, state="done"), FIRST)
    folder = in_sweep(write_run(runs, seed=1, epochs=2), FIRST, slurm={"SLURM_JOB_ID": "41"})
    for each in (done, folder):
        ship(each, uri)
    requeued = {"SLURM_JOB_ID": "41", "SLURM_RESTART_COUNT": "1"}
    ship(in_sweep(folder, FIRST, slurm=requeued), uri)
    assert {run.data.tags.get("slurm.job") for run in children(uri, FIRST)} == {None, "41"}
    write_status(folder, "failed", 1)
    ship(folder, uri)
    (first,) = parents(uri).values()
    assert first.info.status == "RUNNING"

    # The same command again: a plan of both cells, of which one is run.
    write_plan(runs, SECOND, seeds=2)
    slurm = {"SLURM_JOB_ID": "58", "SLURM_ARRAY_JOB_ID": "57", "SLURM_ARRAY_TASK_ID": "0"}
    write_status(folder, "running", 1)
    run_id = ship(in_sweep(folder, SECOND, slurm=slurm), uri).run_id
    (moved,) = children(uri, SECOND)
    assert moved.info.run_id == run_id
    assert moved.data.tags["slurm.job"] == "57_0"
    second = parents(uri)[moved.data.tags[PARENT_TAG]]
    assert second.data.tags["sweep"] == f"demo/{SECOND}"
    write_status(folder, "done", 1)
    ship(folder, uri)
    assert {run.info.status for run in parents(uri).values()} == {"FINISHED"}
    assert len(parents(uri)) == 2


def test_studies_of_one_sweep_in_one_experiment_have_a_parent_each(tmp_path: Path, uri: str) -> None:
    runs = tmp_path / "runs"
    write_plan(runs, FIRST, seeds=1)
    shutil.copytree(runs / "demo", runs / "other")
    done = in_sweep(write_run(runs, epochs=2, state="done"), FIRST)
    going_on = in_sweep(write_run(runs, epochs=2, study="other"), FIRST, sweep=f"other/{FIRST}", id="other")
    for folder in (going_on, done):
        ship(folder, uri, experiment="demo")
    states = {run.data.tags["study"]: run.info.status for run in parents(uri).values()}
    assert states == {"demo": "FINISHED", "other": "RUNNING"}


def test_a_teacher_that_a_sweep_made_has_its_tags_but_no_parent(tmp_path: Path, uri: str) -> None:
    write_plan(tmp_path / "runs", FIRST, seeds=1)
    ship(in_sweep(write_run(tmp_path / "runs", epochs=2, study="teachers"), FIRST), uri)
    (teacher,) = children(uri, FIRST)
    assert PARENT_TAG not in teacher.data.tags
    assert not parents(uri)


def test_a_parent_that_was_deleted_is_made_again(tmp_path: Path, uri: str) -> None:
    write_plan(tmp_path / "runs", FIRST, seeds=1)
    folder = in_sweep(write_run(tmp_path / "runs", epochs=2, state="done"), FIRST)
    ship(folder, uri)
    (old,) = parents(uri)
    MlflowClient(uri).delete_run(old)
    assert ship(folder, uri, verify=True).changed
    (new,) = parents(uri).values()
    assert new.info.run_id != old
    assert new.info.status == "FINISHED"
    assert children(uri, FIRST)[0].data.tags[PARENT_TAG] == new.info.run_id


@pytest.mark.parametrize("plan", [None, "{", '{"cells": 3}', '{"cells": [{"folder": 1}, "x"], "created": 5}'])
def test_a_plan_that_is_lost_or_damaged_stops_nothing(tmp_path: Path, uri: str, plan: str | None) -> None:
    folder = in_sweep(write_run(tmp_path / "runs", epochs=2, state="done"), FIRST)
    if plan is not None:
        (write_plan(tmp_path / "runs", FIRST, seeds=1) / "plan.json").write_text(plan)
    ship(folder, uri)
    (parent,) = parents(uri).values()
    assert (parent.info.status, parent.data.tags["cells"]) == ("RUNNING", "0")
    assert children(uri, FIRST)[0].data.tags[PARENT_TAG] == parent.info.run_id


@pytest.mark.parametrize("sweep", [None, "", "demo", "demo/", 7])
def test_a_run_without_a_sweep_has_no_parent(tmp_path: Path, uri: str, sweep: object) -> None:
    ship(in_sweep(write_run(tmp_path / "runs", epochs=2), FIRST, sweep=sweep), uri)
    assert not parents(uri)


def test_processes_that_make_a_parent_together_agree_on_one(tmp_path: Path, uri: str, python) -> None:
    runs, count = tmp_path / "runs", 6
    write_plan(runs, FIRST, seeds=count)
    write_plan(runs, SECOND, seeds=count)
    folders = []
    for seed in range(count):
        guarded = in_sweep(write_run(runs, seed=seed, epochs=2, state="done"), FIRST)
        unguarded = runs / "demo" / "kd-resnet8-ffffff" / guarded.name
        shutil.copytree(guarded, unguarded)
        folders += [guarded, in_sweep(unguarded, SECOND, id=f"other{seed}")]
    (tmp_path / "steps").mkdir()
    process = python(SHIP, uri, tmp_path / "steps", *folders)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors

    left = parents(uri)
    assert len(left) == 2
    for number in (FIRST, SECOND):
        found = children(uri, number)
        assert len(found) == count
        (parent,) = {run.data.tags[PARENT_TAG] for run in found}
        assert left[parent].data.tags["sweep"] == f"demo/{number}"
    removed = parents(uri, ViewType.DELETED_ONLY).values()
    assert [run.data.tags["sweep"] for run in removed] == [f"demo/{SECOND}"] * (count - 1)


def test_tags_say_what_squeue_says() -> None:
    array = {"SLURM_JOB_ID": "58", "SLURM_ARRAY_JOB_ID": "57", "SLURM_ARRAY_TASK_ID": "0"}
    assert tags_of({"slurm": array}, "k")["slurm.job"] == "57_0"
    assert tags_of({"slurm": {"SLURM_JOB_ID": "58"}}, "k")["slurm.job"] == "58"
    assert tags_of({"slurm": {}}, "k") == tags_of({}, "k") == {"gda.run": "k"}
