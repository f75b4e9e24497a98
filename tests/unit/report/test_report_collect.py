import json
import math
import shutil

from gda.report.collect import is_study, read_study


def test_a_run_is_read_with_result_curve_and_teacher(study):
    study.run("kd", 3, last=93.5, best=93.1, oracle=94.0, epochs=4)
    (run,) = read_study(study.folder).runs
    assert (run.seed, run.state, run.finished, run.epochs) == (3, "done", True, 4)
    assert run.last["test_top1"] == 93.5
    assert run.best is not None
    assert (run.best["epoch"], run.best["test_top1"]) == (3, 93.1)
    assert run.best["train_loss"] == 1 / 3  # completed from the metrics line of that epoch
    assert (run.oracle, run.oracle_epoch, run.teacher_seed) == (94.0, 2, 0)
    assert run.curve[0] == {"epoch": 0, "teacher_test_top1": 95.2}
    assert [run.curve[e]["test_top1"] for e in (1, 2, 3, 4)] == [50.0, 50.0, 50.0, 93.5]
    assert run.method.teacher == "resnet20"
    assert run.method.twin_group is None


def test_a_torn_last_line_is_no_fault(study):
    path = study.run("kd", 0, last=93.5) / "metrics.jsonl"
    path.write_text(path.read_text() + '{"epoch": 5, "test_t')
    found = read_study(study.folder)
    assert found.faults == ()
    assert max(found.runs[0].curve) == 4


def test_a_torn_line_in_the_middle_is_skipped_and_named(study):
    path = study.run("kd", 0, last=93.5) / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:7]
    path.write_text("\n".join(lines) + "\n")
    found = read_study(study.folder)
    assert sorted(found.runs[0].curve) == [0, 1, 3, 4]
    assert "1 unreadable line(s) ignored" in str(found.faults[0])


def test_an_epoch_written_twice_counts_as_last_written(study):
    path = study.run("kd", 0, last=93.5) / "metrics.jsonl"
    path.write_text(path.read_text() + json.dumps({"epoch": 2, "test_top1": 77.0}) + "\n")
    assert read_study(study.folder).runs[0].curve[2] == {"epoch": 2, "test_top1": 77.0}


def test_numbers_that_are_not_finite_are_unknown(study):
    study.run(
        "kd", 0, last=93.5, extra={"test_ece": math.nan, "test_teacher_kl": math.inf, "test_loss": 10**400}
    )
    run = read_study(study.folder).runs[0]
    assert not {"test_ece", "test_teacher_kl", "test_loss"} & run.last.keys()


def test_unreadable_run_json_is_a_fault_not_a_crash(study):
    study.run("kd", 0, last=93.5)
    for seed, content in (
        (1, b'{"format": 1, "gro'),
        (2, b"\xff\xfe"),
        (3, b"[]"),
        (4, b'{"format": 2}'),
        (5, b'{"format": 1}'),
    ):
        (study.run("kd", seed, last=93.5) / "run.json").write_bytes(content)
    (study.run("kd", 6, last=93.5) / "run.json").unlink()
    found = read_study(study.folder)
    assert [run.seed for run in found.runs] == [0]
    reasons = {fault.folder.rpartition("/")[2]: fault.reason for fault in found.faults}
    assert reasons == {
        "seed1": "run.json is not valid JSON",
        "seed2": "run.json is not valid JSON",
        "seed3": "run.json is not a JSON object",
        "seed4": "run.json has format 2; this report reads 1",
        "seed5": "run.json lacks group, label, dataset, recipe, task, student",
        "seed6": "no run.json",
    }


def test_missing_or_odd_status_counts_as_unfinished(study):
    (study.run("kd", 0, last=93.5) / "status.json").unlink()
    (study.run("kd", 1, last=93.5) / "status.json").write_text('{"state": "dreaming", "result": 3}')
    found = read_study(study.folder)
    assert [run.state for run in found.runs] == ["unknown", "unknown"]
    assert [run.epoch for run in found.runs] == [4, 4]  # from the metrics
    assert len(found.faults) == 2
    assert not any(run.finished for run in found.runs)


def test_a_copied_folder_is_not_a_second_seed(study):
    original = study.run("kd", 0, last=93.5)
    shutil.copytree(original, study.folder / "copy" / "seed0")
    found = read_study(study.folder)
    assert len(found.runs) == 1
    assert "same group and seed" in found.faults[0].reason


def test_plans_add_up_and_take_their_task_from_the_runs(study):
    study.run("kd", 0, last=50.0, task="meta_baseline")
    study.plan([("kd", 0), ("kd", 1)], stamp="a")
    study.plan([("kd", 1), ("kd", 2)], stamp="b")
    (study.folder / "sweeps" / "c").mkdir()
    (study.folder / "sweeps" / "c" / "plan.json").write_text('{"cells": [{"group"')
    found = read_study(study.folder)
    assert [cell.seed for cell in found.cells] == [0, 1, 2]
    assert {cell.method.task for cell in found.cells} == {"meta_baseline"}
    assert [str(fault) for fault in found.faults] == ["sweeps/c/plan.json: plan.json is not valid JSON"]


def test_what_counts_as_a_study(study):
    assert not is_study(study.folder)
    study.plan([("kd", 0)])
    assert is_study(study.folder)
