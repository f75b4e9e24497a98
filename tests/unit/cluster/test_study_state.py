import json
import subprocess
import sys
from pathlib import Path

import pytest
from study_folders import FakeSlurm, StudyFolders, ago

from gda.cluster.state.queue import JobState
from gda.cluster.state.study_state import study_state, unfinished_jobs
from gda.tracking.lock import FolderLock
from gda.tracking.run_folder import RunFolder

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return FakeSlurm(tmp_path / "bin", monkeypatch)


@pytest.fixture
def demo(tmp_path, monkeypatch, slurm):
    return StudyFolders(tmp_path / "runs", monkeypatch)


def only(demo, folder=None):
    """The state of the only cell, or of the one in a folder."""
    cells = study_state(demo.study).cells
    (cell,) = [each for each in cells if folder is None or each.folder == folder.resolve()]
    return cell


# Without SLURM


def test_a_cell_that_nothing_has_begun_waits(demo, slurm):
    demo.plan(("a", 0))
    cell = only(demo)
    assert (cell.state, cell.title, cell.planned) == ("waiting", "a seed=0", True)
    assert cell.advice == "the same command runs it"
    assert slurm.calls == []  # nothing to ask


def test_a_run_that_this_machine_makes_is_in_its_next_epoch(demo):
    demo.plan(("a", 0))
    with FolderLock(demo.folder("a")):
        demo.run(demo.folder("a"), epoch=3, epochs=10)
        cell = only(demo)
    assert (cell.state, cell.detail, cell.epoch, cell.epochs) == ("running", "in epoch 4 of 10", 3, 10)


def test_a_run_is_lost_as_soon_as_its_process_on_this_machine_is_gone(demo):
    demo.plan(("a", 0))
    demo.run(demo.folder("a"), epoch=3)
    killed = (
        "import os, sys; from pathlib import Path; from gda.tracking.lock import FolderLock\n"
        "FolderLock(Path(sys.argv[1])).acquire(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", killed, str(demo.folder("a"))], cwd=REPOSITORY, timeout=60)
    assert (demo.folder("a") / "run.lock").exists()
    cell = only(demo)
    assert cell.state == "lost"
    assert cell.detail.startswith("at epoch 3/10: its process is gone for ")
    assert cell.advice == "the same command continues it"


@pytest.mark.parametrize(("silent", "state"), [(0, "running"), (65, "running"), (100, "lost")])
def test_a_process_on_another_machine_lives_while_it_beats(demo, silent, state):
    demo.plan(("a", 0))
    demo.run(demo.folder("a"))
    demo.lock(demo.folder("a"), silent=silent)
    assert only(demo).state == state


@pytest.mark.parametrize(
    ("state", "shown"),
    [("done", "done"), ("failed", "failed"), ("interrupted", "interrupted"), ("preempted", "interrupted")],
)
def test_a_run_without_a_job_is_what_its_status_says(demo, state, shown):
    demo.plan(("a", 0))
    demo.run(demo.folder("a"), state)
    cell = only(demo)
    assert cell.state == shown
    assert cell.error == ("RuntimeError: it went wrong" if state == "failed" else None)


def test_a_process_that_has_failed_and_still_holds_the_lock_does_not_run(demo):
    demo.plan(("a", 0))
    folder = demo.folder("a")
    demo.lock(folder)
    demo.run(folder, "failed")
    holder = json.loads((folder / "run.lock").read_text())
    (folder / "run.lock").write_text(json.dumps(holder | {"created": ago(60)}))
    assert only(demo).state == "failed"
    (folder / "run.lock").write_text(json.dumps(holder))  # taken after that: somebody tries again
    assert only(demo).detail == "starts"


def test_a_run_that_no_plan_names_is_listed_behind_the_cells(demo):
    demo.plan(("z", 0))
    demo.run(demo.folder("a", 3), "done")
    (demo.folder("b", 1)).mkdir(parents=True)  # nothing was ever begun here
    (demo.study / "report").mkdir()
    state = study_state(demo.study)
    assert [(cell.title, cell.planned) for cell in state.cells] == [("z seed=0", True), ("a seed 3", False)]
    assert not state.done


def test_sweeps_join_and_a_cell_is_one_line_whatever_number_of_plans_name_it(demo):
    demo.plan(("a", 0, "single cell"), sweep="2026-01-01_00-00-00")
    demo.plan(("a", 0, "seed=0"), ("a", 1, "seed=1"), sweep="2026-01-02_00-00-00")
    demo.plan(("b", 7, "seed=7"), sweep="2026-01-03_00-00-00")
    demo.run(demo.folder("a", 1), "done")
    state = study_state(demo.study)
    assert [(cell.title, cell.state) for cell in state.cells] == [
        ("a seed 0", "waiting"),
        ("a seed 1", "done"),
        ("b seed 7", "waiting"),
    ]
    assert state.counts == {"done": 1, "waiting": 2}


def test_a_plan_of_one_cell_names_it_by_method_and_seed(demo):
    demo.plan(("a", 0, "single cell"))
    assert only(demo).title == "a seed 0"


def test_cells_that_method_and_seed_do_not_tell_apart_are_named_otherwise(demo):
    demo.plan(("a", 0, "lr=1 seed=0"), ("a2", 0, "lr=2 seed=0"), label="kd")
    demo.plan(("a3", 0, "lr=3"), sweep="2026-01-02_00-00-00", label="kd")
    assert [cell.title for cell in study_state(demo.study).cells] == ["lr=1 seed=0", "lr=2 seed=0", "lr=3"]
    demo.plan(("a4", 0, "lr=3"), sweep="2026-01-03_00-00-00", label="kd")
    assert study_state(demo.study).cells[-1].title == "a4/seed0"


def test_unfinished_inputs_are_listed_while_cells_are(demo):
    teacher = demo.runs / "teachers" / "t" / "seed0"
    demo.plan(("a", 0), inputs=(teacher, demo.folder("a")))
    demo.run(teacher, "failed")
    state = study_state(demo.study)
    assert [(run.title, run.state) for run in state.inputs] == [("teacher t", "failed")]
    assert len(state.cells) == 1
    demo.run(teacher, "done")
    assert study_state(demo.study).inputs == ()
    demo.run(teacher, "failed")
    demo.run(demo.folder("a"), "done")
    assert study_state(demo.study).inputs == ()  # nobody needs it any more


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        ("", "status.json is no valid JSON"),
        ('{"state": "runn', "status.json is no valid JSON"),
        ("[]", "status.json is no JSON object"),
        ("[" * 100000, "status.json is no valid JSON"),
        ('{"state": "asleep"}', "status.json has the unknown state 'asleep', of another version"),
        ('{"state": ["done"]}', "status.json has the unknown state ['done'], of another version"),
        ('{"state": "done", "format": 2}', "status.json has format 2; this version reads 1"),
    ],
)
def test_a_status_that_cannot_be_read_is_said_to_be_so(demo, content, detail):
    demo.plan(("a", 0), ("b", 0))
    demo.run(demo.folder("a"), "done")
    demo.run(demo.folder("b"), "done")
    (demo.folder("a") / "status.json").write_text(content)
    first, second = study_state(demo.study).cells
    assert (first.state, first.detail) == ("unknown", detail)
    assert second.state == "done"


def test_no_garbage_in_any_file_makes_it_fail(demo, slurm):
    slurm.remove("squeue")
    demo.plan(("a", 0), ("b", 0), inputs=(demo.runs / "teachers" / "t" / "seed0",))
    demo.submit({"5": [demo.folder("a")]})
    demo.run(demo.folder("a"), job="5")
    demo.run(demo.folder("c"), "failed")
    garbage = [
        "",
        "{",
        "null",
        '{"cells": 7, "jobs": 7, "state": 7, "epoch": "x", "epochs": -1}',
        "\x00\xff",
        "[[[",
    ]
    garbage += ['{"cells": [7, {"folder": "../../etc"}, {"folder": 3}], "inputs": [7, {"folder": "x"}]}']
    garbage += [
        '{"event": "begin", "time": 7, "slurm_job": {}, "epoch": null}\n',
        '{"epoch": 1, "train_seconds": "x"}\n',
    ]
    files = [path for path in demo.runs.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        whole = path.read_bytes()
        for content in garbage:
            path.write_bytes(content.encode("latin-1"))
            assert study_state(demo.study).cells is not None
            unfinished_jobs(demo.study)
        path.write_bytes(whole)
        path.unlink()
        path.mkdir()  # a folder in place of the file
        study_state(demo.study)
        path.rmdir()
        study_state(demo.study)
        path.write_bytes(whole)


def test_plans_and_submissions_that_cannot_be_used_are_named(demo):
    demo.plan(("a", 0))
    (demo.plan(("b", 0), sweep="2026-01-02_00-00-00") / "plan.json").write_text("{")
    (demo.plan(("b", 0), sweep="2026-01-03_00-00-00") / "plan.json").write_text('{"format": 3, "cells": []}')
    (demo.plan(("b", 0), sweep="2026-01-04_00-00-00") / "plan.json").write_text(
        '{"cells": [{"folder": "../x"}]}'
    )
    (demo.submit({}, sweep="2026-01-05_00-00-00") / "submission.json").write_text('{"format": 9}')
    state = study_state(demo.study)
    assert [cell.title for cell in state.cells] == ["a seed=0"]
    assert state.faults == (
        "sweeps/2026-01-02_00-00-00/plan.json: plan.json is no valid JSON",
        "sweeps/2026-01-03_00-00-00/plan.json has format 3; this version reads 1",
        "sweeps/2026-01-04_00-00-00/plan.json names cells that can't be read",
        "sweeps/2026-01-05_00-00-00/submission.json: submission.json has format 9; this version reads 1",
    )


# With SLURM


def submitted(demo, slurm, known, state=None, job="7", **run):
    """One cell that was submitted; what SLURM knows of its job, and what its folder says."""
    demo.plan(("a", 0))
    demo.submit({job: [demo.folder("a")]})
    if state is not None:
        demo.run(demo.folder("a"), state, job=job, **run)
    slurm.says(queue={job: known} if known else {})
    return only(demo)


@pytest.mark.parametrize(
    ("reason", "detail"),
    [
        ("Dependency", "job 7: waits for a run that it builds on (Dependency)"),
        ("Resources", "job 7: waits for free nodes (Resources)"),
        ("QOSMaxJobsPerUserLimit", "job 7: waits (QOSMaxJobsPerUserLimit)"),
    ],
)
def test_a_job_in_the_queue_says_why_it_waits(demo, slurm, reason, detail):
    cell = submitted(demo, slurm, JobState("PENDING", reason))
    assert (cell.state, cell.detail, cell.job) == ("queued", detail, "7")
    assert cell.advice == ""


def test_a_held_job_has_to_be_released(demo, slurm):
    cell = submitted(demo, slurm, JobState("PENDING", "JobHeldUser"))
    assert (cell.state, cell.advice) == ("queued", "scontrol release 7 lets it go on")


def test_a_job_that_waits_for_one_that_has_failed_never_starts(demo, slurm):
    cell = submitted(demo, slurm, JobState("PENDING", "DependencyNeverSatisfied"))
    assert cell.state == "blocked"
    assert cell.advice == "scancel 7, then the same command runs it again"
    cell = submitted(demo, slurm, JobState("CANCELLED", "DependencyNeverSatisfied"))
    assert (cell.state, cell.advice) == ("blocked", "the same command runs it again")


def test_a_job_cancelled_unstarted_is_blocked_if_what_it_needs_has_failed_else_cancelled(demo, slurm):
    teacher = demo.runs / "teachers" / "t" / "seed0"
    sweep = demo.plan(("a", 0), inputs=(teacher,))
    demo.submit({"7": [demo.folder("a")]})
    runs = [{"folder": str(demo.folder("a")), "needs": [str(teacher)]}]
    (sweep / "jobs").mkdir()
    (sweep / "jobs" / "0.json").write_text(json.dumps({"format": 1, "runs": runs}))
    slurm.says(accounts={"7": ("CANCELLED", 0)})
    demo.run(teacher, "failed")
    assert only(demo).state == "blocked"
    demo.run(teacher, "interrupted")
    assert only(demo).state == "cancelled"
    demo.run(teacher, "failed")
    slurm.says(accounts={"7": ("CANCELLED", 3)})  # it had started
    assert only(demo).state == "cancelled"
    slurm.says()  # no accounts here
    assert only(demo).state == "blocked"


def test_a_preempted_run_comes_back_while_its_job_is_in_the_queue(demo, slurm):
    cell = submitted(demo, slurm, JobState("PENDING", "BeginTime", restarts=1), "preempted", epoch=4)
    assert cell.state == "preempted"
    assert cell.detail == "saved at epoch 4/10; job 7 comes back: SLURM lets it begin in a moment (BeginTime)"
    slurm.says(queue={"7": JobState("RUNNING", seconds=900)})
    assert only(demo).state == "preempted"


def test_a_preempted_run_says_at_which_step_it_was_saved(demo, slurm):
    submitted(demo, slurm, JobState("PENDING"), "running", epoch=4)
    run = RunFolder(demo.folder("a"))
    run.saved_within(12)
    run.preempt()
    cell = only(demo)
    assert cell.detail == "saved at epoch 4/10, step 12; job 7 comes back: waits"
    assert cell.step == 12


def test_a_run_killed_without_a_word_comes_back_too_if_its_job_was_requeued(demo, slurm):
    cell = submitted(demo, slurm, JobState("PENDING", "BeginTime", restarts=1), "running", epoch=4)
    assert cell.state == "preempted"
    assert cell.detail.startswith("stopped after epoch 4/10; job 7 comes back")


def test_a_preempted_run_whose_job_has_ended_does_not_come_back(demo, slurm):
    cell = submitted(demo, slurm, JobState("TIMEOUT"), "preempted", epoch=4)
    assert (cell.state, cell.detail) == ("interrupted", "saved at epoch 4/10; job 7 ended (timeout)")
    assert cell.advice == "the same command continues it"
    assert submitted(demo, slurm, JobState("CANCELLED", seconds=9), "preempted").state == "cancelled"
    assert submitted(demo, slurm, None, "preempted").state == "interrupted"


@pytest.mark.parametrize(
    ("word", "error"),
    [
        ("OUT_OF_MEMORY", "it ran out of memory (SLURM: OUT_OF_MEMORY)"),
        ("TIMEOUT", "it reached its time limit before it could save (SLURM: TIMEOUT)"),
        ("NODE_FAIL", "its node died (SLURM: NODE_FAIL)"),
        ("FAILED", "it died without a word (SLURM: FAILED)"),
    ],
)
@pytest.mark.parametrize("state", ["running", None])
def test_a_run_that_died_with_its_job_fails_with_what_slurm_says(demo, slurm, word, error, state):
    cell = submitted(demo, slurm, JobState(word, seconds=9), state)
    assert (cell.state, cell.error) == ("failed", error)
    assert cell.detail == ("job 7, at epoch 2/10" if state else "job 7, before it began")
    assert cell.advice == f"the same command {'continues it' if state else 'runs it again'}"


def test_a_job_that_died_before_the_run_began_fails_with_the_last_line_of_its_traceback(demo, slurm):
    submitted(demo, slurm, JobState("FAILED"))
    log = Path(only(demo).log)
    log.write_text(
        "submitit INFO (2026) - Starting\nTraceback (most recent call last):\n  File 'x', line 1\n"
        "    import gone\nModuleNotFoundError: No module named 'gone'\nsrun: error: vm: task 0: Exited\n"
    )
    assert only(demo).error == "ModuleNotFoundError: No module named 'gone'"
    log.write_text("submitit INFO (2026) - Starting\nThe code has changed since.\nsrun: error: vm: Exited\n")
    assert only(demo).error == "The code has changed since."
    slurm.says()  # the job is gone from SLURM
    assert (only(demo).state, only(demo).error) == ("failed", "The code has changed since.")
    log.unlink()
    assert (only(demo).state, only(demo).detail) == (
        "lost",
        "job 7 is gone from SLURM without having begun it",
    )


def test_output_of_a_run_that_had_begun_is_no_error(demo, slurm):
    submitted(demo, slurm, JobState("FAILED"), "running")
    log = Path(only(demo).log)
    log.write_text("kd seed 0: epoch 2/10, 3 s left\nsrun: error: vm: task 0: Killed\n")
    assert only(demo).error == "srun: error: vm: task 0: Killed"


def test_a_failed_run_has_failed_whatever_became_of_its_job(demo, slurm):
    for known in (JobState("FAILED"), JobState("RUNNING", seconds=5), JobState("COMPLETED"), None):
        cell = submitted(demo, slurm, known, "failed")
        assert (cell.state, cell.error) == ("failed", "RuntimeError: it went wrong"), known


def test_a_run_that_failed_before_is_queued_again(demo, slurm):
    demo.run(demo.folder("a"), "failed", job="3")
    demo.plan(("a", 0))
    demo.submit({"7": [demo.folder("a")]}, submitted=ago(-60))
    slurm.says(queue={"7": JobState("PENDING", "Priority")})
    cell = only(demo)
    assert cell.state == "queued"
    assert cell.detail == "job 7: other jobs come first (Priority); failed before"
    assert cell.error is None
    slurm.says(queue={"7": JobState("RUNNING", seconds=4)})
    assert (only(demo).state, only(demo).detail) == ("running", "job 7 runs for 4 s; the run has not begun")
    slurm.says(queue={"7": JobState("CANCELLED")})
    assert (only(demo).state, only(demo).detail) == ("cancelled", "job 7, before it began")


def test_a_run_that_its_job_gave_up_without_an_attempt_has_failed(demo, slurm):
    demo.run(demo.folder("a"), "interrupted", job="3")
    demo.plan(("a", 0))
    demo.submit({"7": [demo.folder("a")]}, submitted=ago(-10))
    path = demo.folder("a") / "status.json"
    changed = {
        **json.loads(path.read_text()),
        "state": "failed",
        "error": "The code changed",
        "updated": ago(-20),
    }
    path.write_text(json.dumps(changed))
    slurm.says(queue={"7": JobState("FAILED", seconds=3)})
    assert (only(demo).state, only(demo).error) == ("failed", "The code changed")


def test_slurm_says_running_but_the_run_is_silent(demo, slurm):
    cell = submitted(demo, slurm, JobState("RUNNING", seconds=4000), "running", epoch=4)
    assert cell.state == "running"  # it was just now
    demo.lock(demo.folder("a"), silent=600)
    cell = only(demo)
    assert cell.state == "lost"
    assert cell.detail == "at epoch 4/10: no sign of life for 10 min, but SLURM says that job 7 runs"
    assert cell.advice == "scancel 7, then the same command continues it"
    slurm.says(queue={"7": JobState("RUNNING", seconds=20, restarts=1)})  # it has only just come back
    assert only(demo).state == "running"


def test_a_job_that_completed_without_its_run_is_lost(demo, slurm):
    cell = submitted(demo, slurm, JobState("COMPLETED", seconds=9), "running")
    assert (cell.state, cell.detail) == ("lost", "at epoch 2/10, but job 7 says that it completed")


def test_a_lock_that_beats_says_more_than_slurm(demo, slurm):
    submitted(demo, slurm, JobState("PENDING"), "running")
    demo.lock(demo.folder("a"))
    assert only(demo).state == "running"
    slurm.says()
    assert (only(demo).state, only(demo).detail) == ("running", "in epoch 3 of 10")
    slurm.says(queue={"7": JobState("RUNNING")})
    assert only(demo).detail == "in epoch 3 of 10 (job 7)"


def test_runs_of_one_job_wait_for_their_turn(demo, slurm):
    demo.plan(("a", 0), ("a", 1), ("a", 2))
    folders = [demo.folder("a", seed) for seed in range(3)]
    sweep = demo.submit({"7": folders})
    demo.run(folders[0], "done", job="7")
    demo.run(folders[1], "running", job="7")
    demo.lock(folders[1])
    slurm.says(queue={"7": JobState("RUNNING", seconds=4000)})
    states = study_state(demo.study).cells
    assert [cell.state for cell in states] == ["done", "running", "queued"]
    assert states[2].detail == "waits for its turn in job 7"
    own = sweep / "logs" / "a_seed2.log"  # runs side by side have their own logs
    own.write_text("torch.OutOfMemoryError: too much\n")
    slurm.says(queue={"7": JobState("FAILED")})
    last = study_state(demo.study).cells[2]
    assert (last.state, last.error, last.log) == (
        "failed",
        "torch.OutOfMemoryError: too much",
        str(own.resolve()),
    )


def test_the_newest_submission_counts_unless_an_older_job_is_alive(demo, slurm):
    demo.plan(("a", 0))
    demo.submit({"7": [demo.folder("a")]}, sweep="2026-01-01_00-00-00")
    demo.submit({"9": [demo.folder("a")]}, sweep="2026-01-02_00-00-00")
    slurm.says(queue={"7": JobState("FAILED"), "9": JobState("PENDING")})
    assert only(demo).job == "9"
    slurm.says(queue={"7": JobState("PENDING"), "9": JobState("CANCELLED")})
    assert only(demo).job == "7"
    slurm.says(queue={"7": JobState("PENDING", "DependencyNeverSatisfied"), "9": JobState("CANCELLED")})
    assert only(demo).job == "9"
    slurm.says(queue={"7": JobState("FAILED"), "9": JobState("CANCELLED")})
    assert only(demo).job == "9"


def test_work_done_on_a_run_since_its_job_ended_counts(demo, slurm):
    demo.plan(("a", 0))
    demo.submit({"7": [demo.folder("a")]}, submitted=ago(500))
    demo.run(demo.folder("a"), "interrupted")  # on this machine, with cluster=local
    slurm.says(accounts={"7": ("FAILED", 3)})
    assert (only(demo).state, only(demo).error) == ("interrupted", None)


def test_a_failure_of_somebody_else_is_not_the_jobs(demo, slurm):
    demo.plan(("a", 0))
    demo.submit({"7": [demo.folder("a")]}, submitted=ago(500))
    demo.run(demo.folder("a"), "failed")  # on this machine, while the job waited
    slurm.says(queue={"7": JobState("RUNNING", seconds=4)})
    assert (only(demo).state, only(demo).detail) == ("running", "job 7 runs for 4 s; the run has not begun")


def test_a_task_of_an_array_is_known_by_its_number_too(demo, slurm):
    cell = submitted(demo, slurm, JobState("RUNNING", seconds=9, number="12"), "running", job="11_4")
    assert (cell.state, cell.job) == ("running", "11_4")
    rows = (demo.folder("a") / "attempts.jsonl").read_text().replace('"11_4"', '"12"')
    (demo.folder("a") / "attempts.jsonl").write_text(rows)
    assert only(demo).detail.startswith("at epoch 2/10")  # not: the run has not begun


def test_a_run_of_a_persons_own_job_script_is_found_by_what_it_wrote_down(demo, slurm):
    demo.run(demo.folder("a"), "preempted", job="31")
    slurm.says(queue={"31": JobState("PENDING", "BeginTime")})
    assert (only(demo).state, only(demo).job) == ("preempted", "31")


def test_a_teacher_that_another_study_has_submitted_is_found_there(demo, slurm):
    teacher = demo.runs / "teachers" / "t" / "seed0"
    demo.plan(("a", 0), inputs=(teacher,))
    beside = demo.beside("other")
    beside.submit({"44": [teacher]})
    slurm.says(queue={"44": JobState("PENDING", "Resources")})
    (entry,) = study_state(demo.study).inputs
    assert (entry.state, entry.job) == ("queued", "44")


def test_what_is_wrong_in_another_study_is_not_this_ones(demo, slurm):
    demo.plan(("a", 0), inputs=(demo.runs / "teachers" / "t" / "seed0",))
    damaged = demo.beside("other").submit({"44": [demo.runs / "teachers" / "u" / "seed0"]})
    (damaged / "submission.json").write_text("{")
    assert study_state(demo.study).faults == ()


def test_a_run_that_ends_while_slurm_is_asked_is_seen_as_ended(demo, slurm):
    submitted(demo, slurm, JobState("RUNNING"), "running")
    running = demo.folder("a") / "status.json"
    done = running.with_name("done.json")
    done.write_text(json.dumps(json.loads(running.read_text()) | {"state": "done"}))
    slurm.script("squeue", [], ending=f"exec /bin/mv '{done}' '{running}'")  # and the job has left the queue
    assert only(demo).state == "done"


def test_a_run_root_may_be_mounted_elsewhere(demo, slurm):
    demo.plan(("a", 0))
    demo.submit({"7": [Path("/scratch/me/runs/demo/a/seed0")]})
    slurm.says(queue={"7": JobState("PENDING", "Priority")})
    assert only(demo).state == "queued"


def test_without_an_answer_of_slurm_the_disk_decides(demo, slurm):
    demo.plan(("a", 0), ("b", 0), ("c", 0), ("d", 0), ("e", 0))
    names = "abcde"
    demo.submit({str(number): [demo.folder(name)] for number, name in enumerate(names, 1)})
    for number, (name, state) in enumerate(zip("bcd", ("preempted", "failed", "running"), strict=True), 2):
        demo.run(demo.folder(name), state, job=str(number))
    demo.run(demo.folder("e"), job="5")
    demo.lock(demo.folder("e"))
    slurm.remove("squeue")
    state = study_state(demo.study)
    assert state.queue_fault == "there is no squeue on this machine"
    assert [cell.state for cell in state.cells] == ["queued", "preempted", "failed", "lost", "running"]
    assert state.cells[0].detail == "job 1, when last heard of"
    assert unfinished_jobs(demo.study) == {}


def test_one_look_asks_slurm_once(demo, slurm):
    demo.plan(*(("a", seed) for seed in range(5)))
    demo.submit({f"7_{seed}": [demo.folder("a", seed)] for seed in range(5)})
    slurm.says(queue={f"7_{seed}": JobState("PENDING") for seed in range(4)}, accounts={"7_4": ("FAILED", 1)})
    states = [cell.state for cell in study_state(demo.study).cells]
    assert states == ["queued"] * 4 + ["failed"]
    assert [call.split()[0] for call in slurm.calls] == ["squeue", "sacct"]


def test_finished_runs_need_no_slurm(demo, slurm):
    demo.plan(("a", 0))
    demo.submit({"7": [demo.folder("a")]})
    demo.run(demo.folder("a"), "done", job="7")
    state = study_state(demo.study)
    assert state.done
    assert state.settled
    assert slurm.calls == []


# What the launcher asks


def test_unfinished_jobs_are_those_that_still_make_a_run(demo, slurm):
    folders = {
        name: demo.folder(name) for name in ("done", "failed", "turn", "queued", "stuck", "ended", "back")
    }
    jobs = {"1": [folders["done"], folders["failed"], folders["turn"]]}
    jobs |= {
        str(number): [folders[name]] for number, name in enumerate(("queued", "stuck", "ended", "back"), 2)
    }
    demo.submit(jobs)
    demo.run(folders["done"], "done", job="1")
    demo.run(folders["failed"], "failed", job="1")
    demo.run(folders["back"], "preempted", job="5")
    slurm.says(
        queue={
            "1": JobState("RUNNING", seconds=500),
            "2": JobState("PENDING", "Priority"),
            "3": JobState("PENDING", "DependencyNeverSatisfied"),
            "4": JobState("FAILED"),
            "5": JobState("PENDING", "BeginTime"),
        }
    )
    assert unfinished_jobs(demo.study) == {folders["turn"]: "1", folders["queued"]: "2", folders["back"]: "5"}


def test_unfinished_jobs_of_several_studies_take_one_call(demo, slurm):
    teacher = demo.runs / "teachers" / "t" / "seed0"
    demo.submit({"1": [demo.folder("a")]})
    beside = demo.beside("other")
    beside.submit({"2": [teacher]})
    slurm.says(queue={"1": JobState("PENDING"), "2": JobState("PENDING")})
    assert unfinished_jobs(demo.study, beside.study) == {demo.folder("a"): "1", teacher: "2"}
    assert len(slurm.calls) == 1


# How long it takes


def seconds_left(demo):
    state = study_state(demo.study)
    return {cell.title: cell.seconds_left for cell in state.cells}, state.seconds_left


def running(demo, name, seed=0, **how):
    demo.run(demo.folder(name, seed), "running", **how)
    demo.lock(demo.folder(name, seed))


def test_a_run_takes_its_epochs_times_the_median_of_its_last(demo):
    demo.plan(("a", 0))
    running(demo, "a", epoch=6, epochs=10, seconds=30)
    with (demo.folder("a") / "timing.jsonl").open("a") as file:
        file.write(
            '{"epoch": 7, "train_seconds": 9000, "evaluate_seconds": 0, "save_seconds": 0}\n{"epoch": 8, "tr'
        )
    each, together = seconds_left(demo)
    assert each["a seed=0"] == pytest.approx(120, abs=30)  # 4 epochs, less what has gone of the next
    assert each["a seed=0"] <= 120
    assert together == each["a seed=0"]


def test_runs_that_wait_share_the_places_of_those_that_run(demo):
    demo.plan(*(("a", seed) for seed in range(6)), epochs=10)
    for seed in range(2):
        running(demo, "a", seed, epoch=5, epochs=10, seconds=10)
    each, together = seconds_left(demo)
    assert each["a seed=5"] == pytest.approx(100)
    assert together == pytest.approx((sum(each.values())) / 2)
    assert together == pytest.approx((50 + 50 + 4 * 100) / 2, abs=15)


def test_no_study_ends_before_its_longest_run(demo):
    demo.plan(("a", 0), ("b", 0), epochs=10)
    running(demo, "a", epoch=9, epochs=10, seconds=1)
    running(demo, "b", epoch=1, epochs=10, seconds=100)
    each, together = seconds_left(demo)
    assert together == each["b seed=0"] == pytest.approx(900, abs=100)


def test_a_run_that_beats_but_seems_to_hang_is_said_to(demo):
    demo.plan(("a", 0))
    running(demo, "a", epoch=4, epochs=10, seconds=30)
    path = demo.folder("a") / "status.json"
    status = json.loads(path.read_text())
    path.write_text(json.dumps(status | {"updated": ago(860)}))
    assert only(demo).detail == "in epoch 5 of 10"  # slow, but not more
    path.write_text(json.dumps(status | {"updated": ago(7200)}))
    cell = only(demo)
    assert cell.state == "running"
    assert cell.detail == "in epoch 5 of 10, but no epoch has ended for 2 h, where 30 s is usual"


def test_without_a_measured_epoch_nothing_is_guessed(demo, slurm):
    demo.plan(("a", 0), ("b", 0), epochs=10)
    running(demo, "a", epoch=0, epochs=10)
    assert seconds_left(demo) == ({"a seed=0": None, "b seed=0": None}, None)
    demo.run(demo.folder("b"), "done", seconds=5)
    assert seconds_left(demo)[0]["a seed=0"] == pytest.approx(50, abs=6)  # as its neighbour


def test_failed_runs_and_a_study_that_nobody_works_on_have_no_end(demo):
    demo.plan(("a", 0), ("b", 0), epochs=10)
    demo.run(demo.folder("a"), "interrupted", epoch=5)
    assert seconds_left(demo)[1] is None
    running(demo, "b", epoch=5, epochs=10, seconds=10)
    each, together = seconds_left(demo)
    assert together == each["b seed=0"]  # the interrupted one does not come by itself


def test_lengths_that_no_plan_tells_are_those_of_all_others(demo):
    demo.plan(("a", 0), ("a", 1))
    running(demo, "a", epoch=5, epochs=10, seconds=10)
    assert seconds_left(demo)[0]["a seed=1"] == pytest.approx(100)
    demo.run(demo.folder("b"), "done", epochs=30)  # now there are two lengths
    assert seconds_left(demo)[0]["a seed=1"] is None


def test_a_resumed_attempt_is_where_it_was_before_it_has_read_its_checkpoint(demo):
    demo.plan(("a", 0))
    demo.run(demo.folder("a"), "interrupted", epoch=6)
    RunFolder(demo.folder("a")).begin({}, {"label": "a", "seed": 0}, 10)
    demo.lock(demo.folder("a"))
    assert only(demo).detail == "in epoch 7 of 10"
    assert only(demo).attempts == 2


def test_a_symbolic_link_to_a_study_is_the_study(demo, slurm):
    demo.plan(("a", 0))
    demo.submit({"7": [demo.folder("a")]})
    slurm.says(queue={"7": JobState("PENDING")})
    (demo.runs / "alias").symlink_to(demo.study)
    state = study_state(demo.runs / "alias")
    assert [cell.state for cell in state.cells] == ["queued"]
    assert state.name == "demo"
