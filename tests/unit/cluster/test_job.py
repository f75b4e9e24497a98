import json
import logging
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from frozen import SWEEP, frozen, planned, status

from gda.cluster.frozen_job import CODE_FILE, FrozenJob, freeze_code
from gda.cluster.plan import PlannedRun
from gda.cluster.slurm import job as slurm_job
from gda.config.inputs import identify_run, run_path
from gda.errors import RunInterrupted, RunPreempted, UserError
from gda.job import SlurmJob, run_job
from gda.tracking.run_folder import RunFolder

Tiny = Callable[..., dict[str, Any]]
PLAIN = ("teacher=none", "distiller=vanilla", "alignment=none", "recipe.epochs=1")


@pytest.fixture(autouse=True)
def process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A job sets up the process that it has for itself."""
    for name in ("GDA_SWEEP", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GDA_SWEEP", "")  # so that it is put back
    logger = logging.getLogger("gda")
    known = logger.handlers[:], logger.level, logger.propagate
    logger.handlers[:] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield
    logger.handlers[:], logger.level, logger.propagate = known
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def cell(tmp_path: Path, tiny: Tiny) -> Callable[..., PlannedRun]:
    def made(*overrides: str) -> PlannedRun:
        config = tiny(*PLAIN, f"runs={tmp_path / 'runs'}", *overrides)
        return planned(run_path(config, identify_run(config)), config)

    return made


def test_a_job_makes_its_runs_and_they_know_their_sweep(
    tmp_path: Path, cell: Callable[..., PlannedRun]
) -> None:
    job = frozen(tmp_path / "runs", [cell("seed=0"), cell("seed=1")])
    assert run_job(job.file) == 0
    for run in job.runs:
        assert status(run.folder)["state"] == "done"
        assert json.loads((run.folder / "run.json").read_text())["sweep"] == SWEEP
    assert run_job(job.file) == 0
    assert status(job.runs[0].folder)["attempt"] == 1


def test_one_of_its_runs_can_be_made_alone(tmp_path: Path, cell: Callable[..., PlannedRun]) -> None:
    job = frozen(tmp_path / "runs", [cell("seed=0"), cell("seed=1")])
    assert run_job(job.file, only=1) == 0
    assert [RunFolder(run.folder).is_done() for run in job.runs] == [False, True]


def test_a_run_that_fails_keeps_no_other_from_being_made(
    tmp_path: Path, cell: Callable[..., PlannedRun], capsys: pytest.CaptureFixture[str]
) -> None:
    # The first can't be run at all here, the second fails in training.
    broken = cell("seed=0")
    broken.config["student"]["_target_"] = "gda.models.no_such_model"
    job = frozen(tmp_path / "runs", [broken, cell("recipe.lr=1e30", "recipe.epochs=2"), cell("seed=1")])
    assert run_job(job.file) == 1
    assert [status(run.folder)["state"] for run in job.runs] == ["failed", "failed", "done"]
    assert "fault in this config" in status(job.runs[0].folder)["error"]
    assert "NonFiniteLoss" in status(job.runs[1].folder)["error"]
    journal = (job.runs[1].folder / "attempts.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in journal] == ["begin", "failed"]
    said = capsys.readouterr().err
    assert "no_such_model" in said
    assert "not finite" in said


def test_a_run_that_has_become_another_is_said_to(tmp_path: Path, cell: Callable[..., PlannedRun]) -> None:
    run = cell("seed=0")
    moved = planned(run.folder.parent.with_name("kd-0123") / "seed0", run.config)
    job = frozen(tmp_path / "runs", [moved])
    assert run_job(job.file) == 1
    assert status(moved.folder)["state"] == "failed"
    assert f"finished in {run.folder}" in status(moved.folder)["error"]
    assert status(run.folder)["state"] == "done"


def changed(job: FrozenJob) -> None:
    """Makes as if `gda/app.py` had been another file when the job was submitted."""
    record = json.loads(freeze_code(job.sweep_folder, []).read_text())
    record["files"]["gda/app.py"] = "0" * 64
    (job.sweep_folder / CODE_FILE).write_text(json.dumps(record))


def test_a_job_whose_code_has_changed_fails_before_any_work(
    tmp_path: Path, cell: Callable[..., PlannedRun], capsys: pytest.CaptureFixture[str]
) -> None:
    done, new = cell("seed=0"), cell("seed=1")
    RunFolder(done.folder).begin({}, {}, 1)
    RunFolder(done.folder).finish({})
    job = frozen(tmp_path / "runs", [done, new])
    changed(job)
    assert run_job(job.file) == 1
    assert status(done.folder)["state"] == "done"
    assert status(new.folder)["state"] == "failed"
    assert "code has changed" in status(new.folder)["error"]
    assert "gda/app.py" in status(new.folder)["error"]
    assert "cluster.allow_changed_code=true" in capsys.readouterr().err
    assert not (new.folder / "metrics.jsonl").exists()


def test_changed_code_can_be_allowed(tmp_path: Path, cell: Callable[..., PlannedRun]) -> None:
    job = frozen(tmp_path / "runs", [cell("seed=0")], allow_changed_code=True)
    changed(job)
    assert run_job(job.file) == 0


def test_a_job_that_is_not_there_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        SlurmJob(tmp_path / "jobs/0.json")()
    assert stop.value.code == 1
    assert "file system that the nodes" in capsys.readouterr().err


def test_submitit_can_pickle_a_job_and_bring_it_back(tmp_path: Path, cell: Callable[..., PlannedRun]) -> None:
    job = frozen(tmp_path / "runs", [cell("seed=0")])
    task = pickle.loads(pickle.dumps(SlurmJob(job.file)))
    again = task.checkpoint()
    assert again.function is task
    again.function()
    assert status(job.runs[0].folder)["state"] == "done"


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name; the file that says how it was called. `refused` beside it lets it refuse."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "scontrol"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {folder}/called\n'
        f'test ! -e {folder}/refused || {{ echo "Job is not" >&2; echo requeueable >&2; exit 1; }}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(slurm_job, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(slurm_job, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    return folder / "called"


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> Callable[[UserError], list[int]]:
    """Lets the next run end by a signal; returns the seeds of the runs that were begun."""

    def by(error: UserError) -> list[int]:
        begun: list[int] = []

        def finish(config: dict[str, Any], **more: Any) -> None:
            begun.append(config["seed"])
            raise error

        monkeypatch.setattr("gda.app.finish", finish)
        return begun

    return by


Stops = Callable[[UserError], list[int]]


def test_an_interruption_stops_the_whole_job(
    tmp_path: Path, cell: Callable[..., PlannedRun], stops: Stops
) -> None:
    begun = stops(RunInterrupted("Ctrl-C"))
    job = frozen(tmp_path / "runs", [cell("seed=0"), cell("seed=1")])
    assert run_job(job.file) == 130
    assert begun == [0]


def test_when_time_is_up_the_job_is_put_back_into_the_queue(
    tmp_path: Path, cell: Callable[..., PlannedRun], stops: Stops, scontrol: Path
) -> None:
    begun = stops(RunPreempted("time", signal.SIGUSR2))
    job = frozen(tmp_path / "runs", [cell("seed=0"), cell("seed=1")])
    assert run_job(job.file) == 143
    assert begun == [0]
    assert scontrol.read_text() == "requeue 17\n"
    assert not job.runs[0].folder.exists()  # its state is what the run itself has written
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # it outlasts the grace time


def test_a_task_of_an_array_is_put_back_alone(
    tmp_path: Path,
    cell: Callable[..., PlannedRun],
    stops: Stops,
    scontrol: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "16")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "19")
    stops(RunPreempted("time", signal.SIGUSR2))
    assert run_job(frozen(tmp_path / "runs", [cell("seed=0")]).file) == 143
    assert scontrol.read_text() == "requeue 16_3\n"


def test_a_job_comes_back_so_often_and_not_more_often(
    tmp_path: Path,
    cell: Callable[..., PlannedRun],
    stops: Stops,
    scontrol: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = cell("seed=2")
    RunFolder(done.folder).begin({}, {}, 1)
    RunFolder(done.folder).finish({})
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    stops(RunPreempted("time", signal.SIGUSR2))
    job = frozen(tmp_path / "runs", [cell("seed=0"), cell("seed=1"), done], max_requeues=2)
    assert run_job(job.file) == 1
    assert not scontrol.exists()
    assert [status(run.folder)["state"] for run in job.runs] == ["failed", "failed", "done"]
    assert "Out of time after 2 returns" in status(job.runs[1].folder)["error"]


def test_when_slurm_does_not_take_the_job_back_its_runs_have_failed(
    tmp_path: Path, cell: Callable[..., PlannedRun], stops: Stops, scontrol: Path
) -> None:
    scontrol.with_name("refused").touch()
    stops(RunPreempted("time", signal.SIGUSR2))
    job = frozen(tmp_path / "runs", [cell("seed=0")])
    assert run_job(job.file) == 1
    assert len(scontrol.read_text().splitlines()) == 3  # a busy controller gets further chances
    assert "does not take the job back: Job is not requeueable" in status(job.runs[0].folder)["error"]


def test_a_preempted_job_leaves_its_way_back_to_slurm(
    tmp_path: Path, cell: Callable[..., PlannedRun], stops: Stops, scontrol: Path
) -> None:
    stops(RunPreempted("preempted", signal.SIGTERM))
    assert run_job(frozen(tmp_path / "runs", [cell("seed=0")]).file) == 143
    assert not scontrol.exists()


def test_one_of_several_side_by_side_leaves_the_node_to_its_parent(
    tmp_path: Path, cell: Callable[..., PlannedRun], stops: Stops, scontrol: Path
) -> None:
    stops(RunPreempted("time", signal.SIGUSR2))
    assert run_job(frozen(tmp_path / "runs", [cell("seed=0")]).file, only=0) == 143
    assert not scontrol.exists()


@pytest.mark.parametrize(("sent", "called"), [("SIGUSR2", True), ("SIGTERM", False), ("SIGINT", None)])
def test_a_packed_job_gives_its_node_back_as_one(
    tmp_path: Path,
    cell: Callable[..., PlannedRun],
    scontrol: Path,
    monkeypatch: pytest.MonkeyPatch,
    sent: str,
    called: bool | None,
) -> None:
    from gda.cluster.processes.side_by_side import Outcome, SideBySideEnd

    number = signal.Signals[sent]

    def stopped(jobs: list[FrozenJob], at_once: int) -> SideBySideEnd:
        assert at_once == 4
        runs = jobs[0].runs
        return SideBySideEnd(
            (Outcome(runs[0], "done", "", tmp_path), Outcome(runs[1], "interrupted", "", tmp_path)), number
        )

    monkeypatch.setattr("gda.cluster.processes.side_by_side.run_side_by_side", stopped)
    job = frozen(tmp_path / "runs", [cell("seed=0"), cell("seed=1")], side_by_side=4)
    assert run_job(job.file) == (130 if called is None else 143)
    assert scontrol.exists() == bool(called)
