"""What a sweep hands to SLURM: which jobs, in which order, written down when, and what happens on the way."""

import json
import logging
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm, flags, mark_done
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from gda.cluster.frozen_job import read_job
from gda.cluster.plan import Plan, PlannedRun, write_plans
from gda.cluster.slurm.announcement import announce_jobs, announce_plan, named_jobs, resources
from gda.cluster.slurm.grid import missing_runs, submit_plan
from gda.cluster.slurm.in_queue import UnderWay, orphans_of, under_way
from gda.cluster.slurm.job_arrays import JobArray, arrays_of
from gda.cluster.slurm.leave_or_cancel import leave_or_cancel
from gda.cluster.slurm.submit import Handover, job_parameters, script_of, undisturbed
from gda.cluster.slurm.wait import NotFinished, Over, wait_for
from gda.cluster.state.planned import run_key
from gda.cluster.state.records import CellState, StudyState
from gda.cluster.state.study_state import study_state
from gda.cluster.state.submission import SubmittedJob, read_submission, submissions_of
from gda.errors import RunInterrupted, UserError
from gda.job import SlurmJob
from hydra_plugins.gda_launcher.slurm import SlurmLauncher

CONF = Path(__file__).resolve().parents[3] / "conf"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm.make(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{fake.bin}:{os.defpath}")
    for name in list(os.environ):
        if name.startswith(("SLURM_", "SBATCH_")):
            monkeypatch.delenv(name)
    return fake


class Sweep:
    """Builds plans without configs, and what the launcher makes of the command line."""

    def __init__(self, runs: Path, *overrides: str) -> None:
        self.runs = runs
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            config = compose("config", overrides=["cluster=slurm", *overrides], return_hydra_config=True)
        self.launcher: dict[str, Any] = OmegaConf.to_container(config.hydra.launcher, resolve=True)  # type: ignore[assignment]
        self.cluster: dict[str, Any] = OmegaConf.to_container(config.cluster, resolve=True)  # type: ignore[assignment]
        self.executors = SlurmLauncher(**self.launcher).executor

    def run(
        self, name: str, seed: int = 0, *needs: PlannedRun, study: str = "s", needed: bool = False
    ) -> PlannedRun:
        return PlannedRun(
            folder=self.runs / study / name / f"seed{seed}",
            title=f"{name} {seed}",
            config={"seed": seed, "cluster": self.cluster, "trainer": {"device": "cpu"}},
            facts={"label": name, "seed": seed},
            epochs=2,
            needs=tuple(need.folder for need in needs),
            needed=("last.pt",) if needed else (),
        )

    def teacher(self, seed: int = 0, *needs: PlannedRun) -> PlannedRun:
        return self.run("teacher", seed, *needs, study="teachers", needed=True)

    def go(self, plan: Plan) -> None:
        submit_plan(plan, self.launcher, self.executors, SlurmJob, 1000)

    def handover(self, plan: Plan, in_queue: dict[Path, str] | None = None) -> Handover:
        parameters = job_parameters(self.launcher, self.cluster)
        return Handover(write_plans(plan), parameters, self.cluster, self.executors, SlurmJob, in_queue or {})


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path / "runs")


def folders(arrays: list[JobArray]) -> list[list[list[str]]]:
    """Names of the runs of each job of each array."""
    return [[["/".join(run.folder.parts[-2:]) for run in job] for job in array.jobs] for array in arrays]


def test_runs_with_the_same_needs_share_an_array_behind_what_they_need(sweep: Sweep) -> None:
    first, second = sweep.teacher(0), sweep.teacher(1)
    cells = [
        sweep.run("plain", 0),
        sweep.run("kd", 0, first),
        sweep.run("kd", 1, second),
        sweep.run("dkd", 0, first),
    ]
    plan = Plan(tuple(cells), (first, second))
    arrays = arrays_of(plan, plan.runs_to_do(), set())
    assert folders(arrays) == [
        [["teacher/seed0"], ["teacher/seed1"]],
        [["plain/seed0"]],
        [["kd/seed0"], ["dkd/seed0"]],
        [["kd/seed1"]],
    ]
    assert [array.needs for array in arrays] == [(), (), (first.folder,), (second.folder,)]


def test_inputs_of_inputs_come_one_after_the_other(sweep: Sweep) -> None:
    teacher = sweep.teacher()
    stage = sweep.run("meta", 0, teacher, needed=True)
    test = sweep.run("test", 0, stage)
    plan = Plan((test,), (teacher, stage))
    arrays = arrays_of(plan, plan.runs_to_do(), set())
    assert folders(arrays) == [[["teacher/seed0"]], [["meta/seed0"]], [["test/seed0"]]]
    assert [array.needs for array in arrays] == [(), (teacher.folder,), (stage.folder,)]


def test_a_finished_input_is_not_waited_for_and_one_in_the_queue_is(sweep: Sweep) -> None:
    done, queued = sweep.teacher(0), sweep.teacher(1)
    cells = sweep.run("kd", 0, done), sweep.run("kd", 1, queued)
    plan = Plan(cells, (done, queued))
    arrays = arrays_of(plan, cells, {queued.folder})
    assert [array.needs for array in arrays] == [(), (queued.folder,)]


@pytest.mark.parametrize(("count", "jobs"), [(24, 6), (4, 1), (5, 2), (1, 1)])
def test_packed_jobs_are_as_few_as_can_be(sweep: Sweep, count: int, jobs: int) -> None:
    teacher = sweep.teacher()
    # An eighth of the cells needs no teacher: what both kinds leave over shares a job.
    cells = [sweep.run("cell", number, *([] if number % 8 == 0 else [teacher])) for number in range(count)]
    plan = Plan(tuple(cells), (teacher,))
    arrays = arrays_of(plan, plan.runs_to_do(), set(), side_by_side=4)
    made = [job for array in arrays for job in array.jobs if not array.makes_inputs]
    assert len(made) == jobs
    assert max(map(len, made)) <= 4
    assert sorted(run.folder for job in made for run in job) == sorted(cell.folder for cell in cells)
    for array in arrays:
        needed = {need for run in array.runs for need in run.needs}
        assert set(array.needs) == needed


def test_arrays_are_no_larger_than_slurm_allows(sweep: Sweep) -> None:
    cells = tuple(sweep.run("cell", number) for number in range(7))
    plan = Plan(cells, ())
    assert [len(array.jobs) for array in arrays_of(plan, cells, set(), largest=3)] == [3, 3, 1]


def test_jobs_are_submitted_frozen_in_order_and_written_down(sweep: Sweep, slurm: FakeSlurm) -> None:
    teacher = sweep.teacher()
    cells = sweep.run("kd", 0, teacher), sweep.run("kd", 1, teacher)
    sweep.go(Plan(cells, (teacher,)))

    (submission,) = submissions_of(sweep.runs / "s")
    folder = sweep.runs / "s" / "sweeps" / submission.sweep
    assert [job.job for job in submission.jobs] == ["101", "102_0", "102_1"]
    assert [job.runs for job in submission.jobs] == [(str(run.folder),) for run in (teacher, *cells)]
    for job in submission.jobs:
        frozen = read_job(folder / job.file)
        assert [str(run.folder) for run in frozen.runs] == list(job.runs)
        assert frozen.sweep == f"s/{submission.sweep}"
        assert (frozen.side_by_side, frozen.ranks, frozen.max_requeues) == (1, 1, 20)
    assert submission.jobs[0].log == str(folder / "logs" / "101_0_log.out")
    assert submission.jobs[2].log == str(folder / "logs" / "102_1_0_log.out")
    assert json.loads((folder / "code.json").read_text())["files"]
    for job in ("101", "102_0", "102_1"):
        assert (folder / "logs" / f"{job}_submitted.pkl").exists()

    first, array = slurm.submitted()["101"], slurm.submitted()["102"]
    assert "dependency" not in flags(first)
    assert flags(array)["dependency"] == "afterok:101"
    assert flags(array)["array"] == "0-1%2"
    assert flags(first)["job-name"] == "s-teacher_0"
    assert flags(array)["job-name"] == "s-2_cells"
    for script in (first, array):
        found = flags(script)
        assert found["comment"] == f"gda s/{submission.sweep}"
        assert found["kill-on-invalid-dep"] == "yes"
        assert found["open-mode"] == "append"
        assert "requeue" in found
        assert found["signal"] == "USR2@120"
        assert (found["time"], found["nodes"], found["ntasks-per-node"]) == ("240", "1", "1")
        assert (found["cpus-per-task"], found["gpus-per-node"]) == ("4", "1")
        assert not {"partition", "account", "qos", "mem", "error"} & found.keys()
        srun = shlex.split(next(line for line in script.splitlines() if line.startswith("srun ")))
        assert {"--kill-on-bad-exit=1", "--open-mode=append", "--cpus-per-task=4"} <= set(srun)


def test_every_key_of_the_cluster_reaches_the_job(tmp_path: Path, slurm: FakeSlurm) -> None:
    sweep = Sweep(
        tmp_path / "runs",
        *("cluster.nodes=2", "cluster.ranks_per_node=3", "cluster.partition=gpu", "cluster.account=vision"),
        *("cluster.qos=long", "cluster.timeout_min=90", "cluster.gpus_per_node=0", "cluster.cpus_per_task=5"),
        *("cluster.mem_gb=1.5", "cluster.array_parallelism=1", "cluster.signal_delay_s=33"),
        *("cluster.max_requeues=3", 'cluster.setup=[module load cuda, "export A=1"]'),
        "cluster.sbatch={constraint: a100, exclusive: true, mail-type: END, requeue: false, nice: 0}",
        "hydra.launcher.additional_parameters={kill-on-invalid-dep: no}",
        *("hydra.launcher.name=mine", "hydra.launcher.exclude=bad", "cluster.side_by_side=2"),
        *("cluster.allow_changed_code=true", "hydra.launcher.srun_args=[--label]"),
    )
    sweep.go(Plan(tuple(sweep.run("kd", seed) for seed in range(4)), ()))
    script = slurm.submitted()["101"]
    found = flags(script)
    assert (found["nodes"], found["ntasks-per-node"], found["cpus-per-task"]) == ("2", "3", "5")
    assert (found["partition"], found["account"], found["qos"]) == ("gpu", "vision", "long")
    assert (found["time"], found["signal"], found["mem"], found["array"]) == (
        "90",
        "USR2@33",
        "1536MB",
        "0-1%1",
    )
    assert (found["constraint"], found["mail-type"], found["exclude"]) == ("a100", "END", "bad")
    assert found["job-name"] == "mine-4_cells"
    assert (found["nice"], found["kill-on-invalid-dep"]) == ("0", "no")
    assert "exclusive" in found
    assert not {"gpus-per-node", "requeue"} & found.keys()
    lines = script.splitlines()
    command = next(at for at, line in enumerate(lines) if line.startswith("srun "))
    assert lines.index("module load cuda") < lines.index("export A=1") < command
    assert "--label" in lines[command]
    (submission,) = submissions_of(sweep.runs / "s")
    job = read_job(sweep.runs / "s" / "sweeps" / submission.sweep / submission.jobs[1].file)
    assert (job.side_by_side, job.ranks, job.max_requeues, job.allow_changed_code) == (2, 6, 3, True)
    assert len(job.runs) == 2


def test_the_job_finds_the_code_that_was_checked(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", ["/somewhere/with space", *__import__("sys").path])
    setup = job_parameters(sweep.launcher, sweep.cluster)["setup"]
    assert setup[0] == "export PYTHONPATH='/somewhere/with space'${PYTHONPATH:+:$PYTHONPATH}"


def test_a_job_does_not_inherit_what_the_environment_says(
    sweep: Sweep, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_PROCID", "SBATCH_TIMELIMIT", "SBATCH_ACCOUNT", "SLURM_CONF", "RANK"):
        monkeypatch.setenv(name, "7")
    sweep.go(Plan((sweep.run("kd"),), ()))
    seen = dict(
        line.split("=", 1) for line in (slurm.folder / "101.env").read_text().splitlines() if "=" in line
    )
    assert not {"SLURM_JOB_ID", "SLURM_PROCID", "SBATCH_TIMELIMIT", "RANK"} & seen.keys()
    assert (seen["SBATCH_ACCOUNT"], seen["SLURM_CONF"]) == ("7", "7")
    assert os.environ["SLURM_PROCID"] == "7"


def test_an_account_of_the_config_wins_over_the_environments(
    tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "other")
    sweep = Sweep(tmp_path / "runs", "cluster.account=vision")
    sweep.go(Plan((sweep.run("kd"),), ()))
    assert "SBATCH_ACCOUNT" not in (slurm.folder / "101.env").read_text()


def test_the_same_command_again_submits_nothing_twice(sweep: Sweep, slurm: FakeSlurm) -> None:
    teacher = sweep.teacher()
    cells = [sweep.run("kd", seed, teacher) for seed in range(3)]
    sweep.go(Plan(tuple(cells[:2]), (teacher,)))
    sweep.go(Plan(tuple(cells[:2]), (teacher,)))
    assert len(slurm.submitted()) == 2
    # One seed more: it waits for the teacher that is in the queue already.
    sweep.go(Plan(tuple(cells), (teacher,)))
    assert flags(slurm.submitted()["103"])["dependency"] == "afterok:101"
    assert [job.runs for job in submissions_of(sweep.runs / "s")[-1].jobs] == [(str(cells[2].folder),)]
    # The teacher and one cell are done, one cell has vanished from the queue.
    mark_done(teacher.folder, cells[0].folder)
    slurm.end("101", "102_0", "102_1")
    sweep.go(Plan(tuple(cells), (teacher,)))
    assert [job.runs for job in submissions_of(sweep.runs / "s")[-1].jobs] == [(str(cells[1].folder),)]
    assert "dependency" not in flags(slurm.submitted()["104"])
    mark_done(*(cell.folder for cell in cells))
    calls = len(slurm.calls("squeue"))
    sweep.go(Plan(tuple(cells), (teacher,)))
    assert len(slurm.submitted()) == 4
    assert len(slurm.calls("squeue")) == calls


def test_a_teacher_that_another_study_waits_for_is_not_made_twice(sweep: Sweep, slurm: FakeSlurm) -> None:
    teacher = sweep.teacher()
    sweep.go(Plan((sweep.run("kd", 0, teacher, study="first"),), (teacher,)))
    sweep.go(Plan((sweep.run("kd", 0, teacher, study="second"),), (teacher,)))
    assert list(slurm.submitted()) == ["101", "102", "103"]
    assert flags(slurm.submitted()["103"])["dependency"] == "afterok:101"


def test_a_sweep_over_two_studies_writes_each_down_where_it_belongs(sweep: Sweep, slurm: FakeSlurm) -> None:
    teacher = sweep.teacher()
    cells = sweep.run("kd", 0, teacher, study="one"), sweep.run("kd", 0, teacher, study="two")
    sweep.go(Plan(cells, (teacher,)))
    (one,), (two,) = submissions_of(sweep.runs / "one"), submissions_of(sweep.runs / "two")
    assert [job.runs for job in one.jobs] == [(str(teacher.folder),), (str(cells[0].folder),)]
    assert [job.runs for job in two.jobs] == [(str(cells[1].folder),)]
    assert flags(slurm.submitted()["103"])["dependency"] == "afterok:101"
    assert flags(slurm.submitted()["103"])["comment"] == f"gda two/{two.sweep}"


def test_a_refused_array_takes_the_jobs_before_it_with_it(sweep: Sweep, slurm: FakeSlurm) -> None:
    slurm.say("refuse_102", "sbatch: error: Batch job submission failed: Invalid qos specification")
    teacher = sweep.teacher()
    with pytest.raises(UserError) as refused:
        sweep.go(Plan((sweep.run("kd", 0, teacher),), (teacher,)))
    assert str(refused.value) == (
        "cluster.qos: sbatch refuses the job: Invalid qos specification\n"
        "Cancelled what this command had submitted before: 101."
    )
    assert slurm.queue() == []
    assert slurm.calls("scancel") == ["scancel 101"]


def test_a_refused_first_array_leaves_nothing(
    sweep: Sweep, slurm: FakeSlurm, capfd: pytest.CaptureFixture[str]
) -> None:
    slurm.say("refuse_101", "sbatch: error: Access denied")
    with pytest.raises(
        UserError, match=r"^cluster: sbatch refuses the job: Access denied\nNothing was submitted.$"
    ):
        sweep.go(Plan((sweep.run("kd"),), ()))
    assert "Access denied" not in capfd.readouterr().err  # once is enough, where it is explained
    assert slurm.calls("scancel") == []


def test_nothing_is_submitted_when_the_queue_can_not_be_asked(sweep: Sweep, slurm: FakeSlurm) -> None:
    plan = Plan((sweep.run("kd"),), ())
    sweep.go(plan)
    slurm.say("refuse_squeue", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    with pytest.raises(UserError, match=r"can't be asked.*Unable to contact slurm controller"):
        sweep.go(plan)
    assert len(slurm.submitted()) == 1


def test_jobs_that_a_killed_command_has_not_written_down_are_cancelled(
    sweep: Sweep, slurm: FakeSlurm
) -> None:
    teacher = sweep.teacher()
    plan = Plan((sweep.run("kd", 0, teacher),), (teacher,))
    sweep.go(plan)
    (submission,) = submissions_of(sweep.runs / "s")
    file = sweep.runs / "s" / "sweeps" / submission.sweep / "submission.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "jobs": record["jobs"][:1]}))  # killed before the second was noted
    with (slurm.folder / "queue").open("a") as queue:
        queue.write("55 55 PENDING /elsewhere/job.sh\n")
    assert orphans_of(plan) == ["102"]
    sweep.go(plan)
    assert slurm.calls("scancel") == ["scancel 102"]
    assert slurm.queue() == ["101", "55", "103"]
    assert flags(slurm.submitted()["103"])["dependency"] == "afterok:101"


def test_a_run_in_a_living_process_is_left_to_it(sweep: Sweep, slurm: FakeSlurm) -> None:
    from gda.tracking.lock import FolderLock

    cells = sweep.run("kd", 0), sweep.run("kd", 1)
    with FolderLock(cells[0].folder).acquire():
        assert under_way(cells).elsewhere == {cells[0].folder}
        sweep.go(Plan(cells, ()))
    assert [job.runs for job in submissions_of(sweep.runs / "s")[0].jobs] == [(str(cells[1].folder),)]


def test_only_what_missing_cells_need_is_submitted(sweep: Sweep) -> None:
    one, two = sweep.teacher(1), sweep.teacher(2)
    cells = sweep.run("kd", 1, one), sweep.run("kd", 2, two)
    plan = Plan(cells, (one, two))
    known = UnderWay(jobs={cells[0].folder: "7"})
    assert missing_runs(plan, plan.runs_to_do(), known) == [two, cells[1]]


def test_ctrl_c_waits_until_an_array_is_written_down(sweep: Sweep, slurm: FakeSlurm) -> None:
    slurm.say("then_101", f"kill -INT {os.getpid()}")
    teacher = sweep.teacher()
    plan = Plan((sweep.run("kd", 0, teacher),), (teacher,))
    with pytest.raises(RunInterrupted) as stopped:
        sweep.go(plan)
    assert str(stopped.value) == "Interrupted. The jobs stay in the queue. To cancel them: scancel 101"
    assert slurm.queue() == ["101"]
    (submission,) = submissions_of(sweep.runs / "s")
    assert [job.job for job in submission.jobs] == ["101"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    sweep.go(plan)  # goes on where it was stopped
    assert flags(slurm.submitted()["102"])["dependency"] == "afterok:101"


def test_programs_are_deaf_to_ctrl_c_meanwhile() -> None:
    with undisturbed():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(KeyboardInterrupt), undisturbed():
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(ValueError, match="of its own"), undisturbed():
        raise ValueError("of its own")


class Terminal:
    """A terminal at which somebody types a line."""

    def __init__(self, line: str) -> None:
        self.line, self.shown = line, ""

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return self.line

    def write(self, text: str) -> None:
        self.shown += text

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(("answer", "cancels"), [("c\n", True), ("L\n", False), ("\n", False), ("", False)])
def test_a_person_decides_what_becomes_of_the_jobs(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, answer: str, cancels: bool
) -> None:
    terminal = Terminal(answer)
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    with pytest.raises(RunInterrupted, match="Cancelled: 7, 8_1" if cancels else "scancel 7 8_1"):
        leave_or_cancel(["7", "8_1"])
    assert "Cancel the jobs or leave them running? [c/L]" in terminal.shown
    assert slurm.calls("scancel") == (["scancel 7 8_1"] if cancels else [])


def test_the_plan_is_told_in_words(
    sweep: Sweep, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    listener = logging.Handler()
    monkeypatch.setattr(listener, "emit", lambda record: said.append(record.getMessage()))
    monkeypatch.setattr(logging.getLogger("gda"), "handlers", [listener])
    teacher, other = sweep.teacher(0), sweep.teacher(1)
    cells = [
        *(sweep.run("kd", seed, teacher) for seed in range(3)),
        sweep.run("kd", 3, other),
        sweep.run("kd", 4),
    ]
    mark_done(cells[0].folder)
    plan = Plan(tuple(cells), (teacher, other))
    known = UnderWay({cells[1].folder: "9", other.folder: "8"}, {cells[4].folder})
    with caplog.at_level(logging.INFO, "gda"):
        missing = missing_runs(plan, plan.runs_to_do(), known)
        announce_plan(plan, missing, known)
        parameters = job_parameters(sweep.launcher, sweep.cluster)
        announce_jobs(arrays_of(plan, missing, known.jobs, 2), parameters, 2)
    assert said == [
        "5 cells: 1 finished before, 1 in the queue, 1 made outside the queue now, 2 to run",
        "made first, because cells build on it: teacher 0",
        "waited for, because it is in the queue already: teacher 1 (job 8)",
        "no past runs to estimate the time from",
        "2 jobs for 3 runs, up to 2 side by side, each: 1 node, 4 CPUs, 1 GPU, at most 4 h at a time",
    ]


def test_resources_and_jobs_in_words(tmp_path: Path) -> None:
    ddp = Sweep(
        tmp_path, "cluster=slurm_ddp", "cluster.nodes=2", "cluster.mem_gb=64", "cluster.partition=gpu"
    )
    assert resources(job_parameters(ddp.launcher, ddp.cluster)) == (
        "2 nodes, 2 processes a node, 4 CPUs a process, 2 GPUs a node, 64 GB a node, at most 4 h at a time, "
        "partition gpu"
    )
    jobs = [SubmittedJob(job, "", (), "") for job in ("1", "2_0", "2_1", "2_2", "3_0")]
    assert named_jobs(jobs) == "1, 2_0 to 2_2, 3_0"


def test_a_parameter_that_submitit_does_not_know_is_a_fault(sweep: Sweep) -> None:
    with pytest.raises(UserError, match="Unknown argument 'colour'"):
        script_of(sweep.executors, {**job_parameters(sweep.launcher, sweep.cluster), "colour": "red"})


def test_waiting_ends_with_every_failure(sweep: Sweep, slurm: FakeSlurm) -> None:
    from gda.tracking.run_folder import RunFolder

    cells = [sweep.run("kd", seed) for seed in range(3)]
    plan = Plan(tuple(cells), ())
    sweep.go(plan)
    mark_done(cells[0].folder)
    for cell in cells[1:]:
        RunFolder(cell.folder).begin({}, {}, 2)
        RunFolder(cell.folder).fail(UserError(f"no luck with {cell.title}\nand more"))
    slurm.end("101_0", "101_1", "101_2")
    with pytest.raises(NotFinished) as told:
        wait_for(plan, seconds=0.01)
    for cell in cells[1:]:
        assert f"failed: {cell.title}: UserError: no luck with {cell.title}" in str(told.value)
    assert "and more" not in str(told.value)
    assert "Not all of 3 cells are done" in str(told.value)
    mark_done(*(cell.folder for cell in cells))
    wait_for(plan, seconds=0.01)


def test_waiting_goes_on_while_a_job_might_come_back(
    sweep: Sweep, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, lost = sweep.run("kd"), sweep.run("dkd")
    plan = Plan((done, lost), ())
    sweep.go(plan)
    looks = 0

    def look(study: Path) -> StudyState:
        nonlocal looks
        looks += 1
        if looks == 3:
            mark_done(done.folder)
        if looks == 5:
            slurm.end("101_1")
        return study_state(study)

    monkeypatch.setattr("gda.cluster.state.watch.study_state", look)
    with pytest.raises(NotFinished, match="lost: dkd 0"):
        wait_for(plan, seconds=0.01)
    assert looks == 6  # the last one only to be sure


def test_a_silent_run_whose_job_is_there_is_waited_for(sweep: Sweep, slurm: FakeSlurm) -> None:
    cell = sweep.run("kd")
    sweep.go(Plan((cell,), ()))
    lost = CellState(cell.folder, "kd 0", "lost", job="101")  # as after the death of a node
    state = StudyState(cell.study, (lost,))
    over = Over({run_key(cell.folder)})
    assert [over(state), over(state), over(state)] == [False] * 3
    slurm.end("101")
    assert [over(state), over(state)] == [False, True]


def test_a_submission_is_readable_after_each_array(
    sweep: Sweep, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    submit: Callable[[Handover, JobArray], None] = Handover.submit

    def watched(self: Handover, array: JobArray) -> None:
        submit(self, array)
        found = read_submission(self.sweeps[array.study])
        assert found is not None
        seen.append([job.job for job in found.jobs])

    monkeypatch.setattr(Handover, "submit", watched)
    teacher = sweep.teacher()
    sweep.go(Plan((sweep.run("kd", 0, teacher), sweep.run("plain")), (teacher,)))
    assert seen == [["101"], ["101", "102"], ["101", "102", "103"]]
