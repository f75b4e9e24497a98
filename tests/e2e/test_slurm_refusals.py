"""`cluster=slurm` as a person types it, with a SLURM that only takes notes: refusals, and repairs."""

import itertools
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm, flags, mark_done
from launching import Child
from slurm_child import run_with_path

pytestmark = pytest.mark.cluster  # slow: `make test-cluster`

Submit = Callable[..., Child]

GRID = ("cluster=slurm", "study=s", "teacher.checkpoint=auto", "distiller=kd", "seed=0,1")


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm.make(tmp_path / "slurm")


@pytest.fixture
def submit(tmp_path: Path, slurm: FakeSlurm, tiny_overrides: Callable[..., list[str]]) -> Iterator[Submit]:
    """Starts `python launch.py` with the tiny settings where the fake SLURM is on PATH."""
    children: list[Child] = []
    numbers = itertools.count()

    def begin(*arguments: str, path: str = f"{slurm.bin}:{os.defpath}") -> Child:
        flags = [each for each in arguments if "=" not in each]
        line = [*flags, *tiny_overrides(*(each for each in arguments if "=" in each))]
        log = tmp_path / f"child{next(numbers)}.log"
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=run_with_path, args=(path, line, str(tmp_path), str(log)))
        process.start()
        children.append(Child(process, log))
        return children[-1]

    yield begin
    for child in children:
        if child.process.is_alive():
            child.process.kill()
        child.process.join()


def cells_of(runs: Path) -> list[Path]:
    (plan,) = (runs / "s" / "sweeps").glob("*/plan.json")
    return [runs / "s" / cell["folder"] for cell in json.loads(plan.read_text())["cells"]]


def test_faults_of_the_grid_and_of_the_cluster_come_together(
    submit: Submit, slurm: FakeSlurm, tmp_path: Path
) -> None:
    child = submit(
        *GRID,
        *("recipe.epochs=0", "cluster.partition=gpus", "cluster.account=visoin", "cluster.timeout_min=30,60"),
        "cluster.sbatch={array: 0-3}",
    )
    assert child.wait() == 1
    assert "There are 5 faults in this config; nothing was run:" in child.output
    for line in (
        "recipe.epochs: 0 must be at least 1 [in all cells]",
        "cluster.partition: there is no partition 'gpus'; did you mean 'gpu'? Try: cluster.partition=gpu",
        "cluster.account: you have no account 'visoin'; did you mean 'vision'? Try: cluster.account=vision",
        "cluster.timeout_min: it can't differ between the cells of a sweep, and is 30 and 60",
        "cluster.sbatch.array: the launcher sets this flag itself. Try: ~cluster.sbatch.array",
    ):
        assert line in child.output
    assert "Traceback" not in child.output
    assert slurm.submitted() == {}
    assert not (tmp_path / "runs").exists()


def test_without_a_slurm_the_command_says_where_to_go(submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    child = submit(*GRID, "recipe.epochs=0", path=str(tmp_path / "empty"))
    assert child.wait() == 1
    assert "1. recipe.epochs: 0 must be at least 1" in child.output
    assert (
        "2. cluster: there is no sbatch on PATH: run this on a login node of the cluster. Try: cluster=local"
        in child.output
    )
    assert "Traceback" not in child.output
    assert not (tmp_path / "runs").exists()


def test_a_check_asks_sbatch_too_and_leaves_nothing_behind(
    submit: Submit, slurm: FakeSlurm, tmp_path: Path
) -> None:
    fine = submit(*GRID, "check=true")
    assert fine.wait() == 0, fine.output
    assert "Nothing is wrong with the 2 cells of this sweep, and SLURM takes its jobs." in fine.output
    slurm.say("refuse_check", "allocation failure: Invalid feature specification")
    refused = submit(*GRID, "check=true", "cluster.sbatch={constraint: a1000}")
    assert refused.wait() == 1
    assert "1. cluster.sbatch: sbatch refuses the job: Invalid feature specification\n" in refused.output
    assert flags((slurm.folder / "checked.sh").read_text())["constraint"] == "a1000"
    assert slurm.submitted() == {}
    assert not (tmp_path / "runs").exists()


def test_a_sweep_is_submitted_once_and_what_is_missing_again(
    submit: Submit, slurm: FakeSlurm, tmp_path: Path
) -> None:
    first = submit(*GRID)  # without -m
    assert first.wait() == 0, first.output
    runs = tmp_path / "runs"
    sweep = next((runs / "s" / "sweeps").iterdir())
    assert [line for line in first.output.splitlines() if not line.startswith("Warning: ")] == [
        "2 cells: 2 to run",
        "made first, because cells build on it: teacher resnet8 seed 0",
        "no past runs to estimate the time from",
        "3 jobs, each: 1 node, 4 CPUs, 1 GPU, at most 4 h at a time",
        "Submitted: 101, 102_0 to 102_1",
        f"Logs: {sweep.relative_to(tmp_path)}/logs",
        "Status: python -m gda.status s",
    ]
    assert flags(slurm.submitted()["102"])["dependency"] == "afterok:101"
    cells = cells_of(runs)

    again = submit(*GRID)
    assert again.wait() == 0, again.output
    assert "2 cells: 2 in the queue, 0 to run\nNothing to submit.\n" in again.output
    assert list(slurm.submitted()) == ["101", "102"]

    (teacher,) = (Path(job) for job in json.loads((sweep / "submission.json").read_text())["jobs"][0]["runs"])
    mark_done(teacher, cells[0])
    slurm.end(*slurm.queue())
    rest = submit(*GRID)
    assert rest.wait() == 0, rest.output
    assert "2 cells: 1 finished before, 1 to run\n" in rest.output
    assert list(slurm.submitted()) == ["101", "102", "103"]
    assert "dependency" not in flags(slurm.submitted()["103"])

    mark_done(*cells)
    slurm.end(*slurm.queue())
    done = submit(*GRID)
    assert done.wait() == 0, done.output
    assert "2 cells: 2 finished before, 0 to run\nNothing to run.\n" in done.output
    assert list(slurm.submitted()) == ["101", "102", "103"]


def test_what_a_sweeps_own_file_says_of_the_cluster_holds(
    submit: Submit, slurm: FakeSlurm, tmp_path: Path
) -> None:
    (tmp_path / "mine" / "sweep").mkdir(parents=True)
    (tmp_path / "mine" / "sweep" / "short.yaml").write_text(
        "# @package _global_\n"
        "study: s\n"
        "hydra: {sweeper: {params: {seed: '0,1,2', cluster.timeout_min: 30}}}\n"
    )
    child = submit("--config-dir", "mine", "cluster=slurm_packed", "sweep=short", "teacher.checkpoint=auto")
    assert child.wait() == 0, child.output
    assert flags(slurm.submitted()["102"])["time"] == "30"
    assert "2 jobs for 4 runs, up to 4 side by side, each: 1 node, " in child.output
    assert ", at most 30 min at a time\n" in child.output


def test_a_refusal_midway_takes_everything_back(submit: Submit, slurm: FakeSlurm) -> None:
    slurm.say(
        "refuse_102",
        "sbatch: error: QOSMaxSubmitJobPerUserLimit",
        "sbatch: error: no more jobs",
    )
    child = submit(*GRID)
    assert child.wait() == 1
    assert child.output.endswith(
        "cluster.qos: sbatch refuses the job: QOSMaxSubmitJobPerUserLimit; no more jobs\n"
        "Cancelled what this command had submitted before: 101.\n"
    )
    assert slurm.queue() == []


def test_ctrl_c_leaves_the_jobs_and_the_same_command_goes_on(submit: Submit, slurm: FakeSlurm) -> None:
    slurm.say("then_101", "kill -INT $PPID")
    child = submit(*GRID)
    assert child.wait() == 130, child.output
    assert "Interrupted. The jobs stay in the queue. To cancel them: scancel 101\n" in child.output
    assert "Traceback" not in child.output
    again = submit(*GRID)
    assert again.wait() == 0, again.output
    assert "waited for, because it is in the queue already: teacher resnet8 seed 0 (job 101)" in again.output
    assert flags(slurm.submitted()["102"])["dependency"] == "afterok:101"


@pytest.mark.parametrize("job", ["101", "102"])
def test_a_command_killed_midway_is_repaired_by_itself(submit: Submit, slurm: FakeSlurm, job: str) -> None:
    slurm.say(f"then_{job}", "kill -KILL $PPID")
    child = submit(*GRID)
    assert child.wait() == -signal.SIGKILL
    again = submit(*GRID)
    assert again.wait() == 0, again.output
    assert f"Cancelled, left behind by a command that was killed while it submitted: {job}" in again.output
    kept = ["101"] if job == "102" else []
    teacher = kept or ["102"]
    assert slurm.queue() == [*teacher, *(f"103_{task}" for task in range(2))]
    assert flags(slurm.submitted()["103"])["dependency"] == f"afterok:{teacher[0]}"
