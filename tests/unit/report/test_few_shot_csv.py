import csv
import io

from gda.report import write_report
from gda.report.collect import read_study


def test_csv_names_the_figures(few_shot, make_shares):
    few_shot.meta("kd", 0, 61.0, 61.5)
    few_shot.test("kd test", 0, make_shares(0.6, 0), base=70.0)
    folder = write_report(few_shot.folder).folder
    runs = list(csv.DictReader(io.StringIO((folder / "runs.csv").read_text())))
    meta, test = sorted(runs, key=lambda line: line["task"], reverse=True)
    assert (meta["last_test_1shot"], meta["best_test_1shot"], meta["best_epoch"]) == ("61.0", "61.5", "3")
    assert (meta["oracle_test_1shot"], meta["last_test_5shot"]) == ("61.5", "76.0")
    assert "last_test_top1" not in meta
    (run,) = (run for run in read_study(few_shot.folder).runs if run.is_test)
    assert float(test["last_test_5shot_probe_interval"]) == run.last["test_5shot_probe_interval"]
    assert (test["oracle_test_1shot"], test["oracle_epoch"], test["last_base_test_top1"]) == ("", "", "70.0")
    methods = {line["task"]: line for line in csv.DictReader(io.StringIO((folder / "table.csv").read_text()))}
    assert methods["few_shot_test"]["figure"] == "1shot"
    assert float(methods["few_shot_test"]["last_1shot_auc_mean"]) == run.last["test_1shot_auc"]
    assert methods["meta_baseline"]["last_1shot_auc_mean"] == ""


def test_csv_of_both_kinds_of_runs_has_columns_of_each(few_shot):
    few_shot.meta("kd", 0, 61.0, 61.5)
    few_shot.run("kd digits", 0, last=91.0, dataset="digits", figure="top1", figure_text="top-1 accuracy")
    header = (write_report(few_shot.folder).folder / "runs.csv").read_text().splitlines()[0].split(",")
    start = header.index("selection") + 1
    assert header[start : start + 8] == [
        "last_test_top1", "best_test_top1", "last_test_1shot", "best_test_1shot", "best_epoch",
        "oracle_test_top1", "oracle_test_1shot", "oracle_epoch",
    ]  # fmt: skip


def test_classification_has_the_csv_columns_it_always_had(study):
    study.run("kd", 0, last=91.0)
    folder = write_report(study.folder).folder
    assert (folder / "runs.csv").read_text().splitlines()[0] == (
        "task,dataset,recipe,pair,label,group,seed,state,epoch,epochs,selection,last_test_top1,best_test_top1,"
        "best_epoch,oracle_test_top1,oracle_epoch,error,folder"
    )
    assert (folder / "table.csv").read_text().splitlines()[0].endswith("seeds_unfinished,seeds_missing")
