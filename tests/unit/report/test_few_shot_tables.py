import pytest

from gda.report import write_report
from gda.report.aggregate import aggregate
from gda.report.collect import read_study
from gda.report.plots import curves_png, differences_png
from gda.report.tables import print_tables

NOVEL = "5-way 1-shot accuracy on novel classes"


def tables_of(study):
    return {table.task: table for table in aggregate(read_study(study.folder))}


def lines_of(study):
    """The tables of the page: task -> (headings, method -> cells by heading), main tables only."""
    found = {}
    text = write_report(study.folder).page.read_text(encoding="utf-8")
    for block in text.split("\n## ")[1:]:
        title, *lines = block.split("\n### ")[0].splitlines()
        rows = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines if line.startswith("| ")]
        headings, _, *cells = rows
        by_method = {row[0]: dict(zip(headings, row, strict=True)) for row in cells}
        found[title.rpartition("(")[2].rstrip(")")] = (headings, by_method, block)
    return found


def test_a_run_is_judged_by_its_own_figure(few_shot):
    few_shot.meta("kd", 2, 61.0, 61.5)
    (run,) = read_study(few_shot.folder).runs
    assert (run.figure, run.figure_text, run.test_figure) == ("1shot", NOVEL, "test_1shot")
    assert run.finished
    assert (run.oracle, run.oracle_epoch) == (61.5, 3)
    assert run.encoder_run == ("e" * 12, 0)
    row = tables_of(few_shot)["meta_baseline"].rows[0]
    assert (row.last.mean, row.best.mean, row.oracle.n) == (61.0, 61.5, 0)
    assert row.beside["test_5shot"].mean == 76.0
    assert (row.agreement.mean, row.ece.mean, row.teacher_kl.mean) == (71.5, 0.0625, 0.25)


def test_a_done_run_without_its_figure_has_no_result(few_shot):
    few_shot.meta("kd", 0, 61.0, 61.5, figure="10shot")
    assert not read_study(few_shot.folder).runs[0].finished


def test_older_runs_name_no_figure_and_are_judged_by_top1(study):
    study.run("kd", 0, last=91.0, oracle=92.0)
    (run,) = read_study(study.folder).runs
    assert (run.figure, run.figure_text, run.oracle, run.encoder_run) == (
        "top1",
        "top-1 accuracy",
        92.0,
        None,
    )


def test_the_table_of_a_meta_learner(few_shot):
    for seed in range(3):
        few_shot.meta("vanilla", seed, 60.0 + seed, 60.5 + seed)
        few_shot.meta("kd", seed, 61.0 + seed, 61.5 + seed)
    headings, rows, text = lines_of(few_shot)["meta_baseline"]
    assert headings == [
        "method", "n", "last", "best (on validation)", "last vs alignment=none", "last vs vanilla",
        "best vs alignment=none", "best vs vanilla", "5-shot", "agreement %", "ECE", "teacher KL", "not done",
    ]  # fmt: skip
    assert rows["kd"]["last"] == "**62.00 ± 1.00**"
    assert rows["kd"]["5-shot"] == "**77.00 ± 1.00**"
    assert rows["kd"]["last vs vanilla"] == "+1.00 [+1.00, +1.00]† (n=3)"
    assert rows["kd"]["agreement %"] == "71.50"
    assert f"last: test {NOVEL} in percent after the last epoch" in text
    assert f"best: test {NOVEL} at the epoch with the best validation figure" in text
    assert "5-shot: test 5-way 5-shot accuracy on novel classes in percent after the last epoch" in text
    assert "share of the queries of the test episodes" in text
    assert f"Teacher resnet12: test {NOVEL} 60.50 %." in text
    assert "top-1" not in text
    assert "AUC" not in text
    assert "probe" not in text


def test_the_table_of_a_classifier_reads_base_classes_and_has_an_oracle(few_shot):
    for seed in range(2):
        few_shot.classifier("kd", seed, 59.0 - seed)
    headings, rows, text = lines_of(few_shot)["few_shot_classifier"]
    assert headings[2:4] == ["last", "oracle (selected on test)"]
    assert rows["kd"] | {"5-shot": "78.50 ± 0.71", "base top-1": "80.00 ± 0.00"} == rows["kd"]
    assert rows["kd"] | {"agreement %": "81.00", "ECE": "0.0312", "teacher KL": "0.5000"} == rows["kd"]
    assert "the highest of the 2 test figures of each run" in text
    assert "base top-1: top-1 accuracy in percent on held-out images of the base classes." in text
    assert "share of held-out images of the base classes" in text
    assert "encoder run" not in text


def test_the_table_of_a_test_has_auc_and_probe_and_nothing_of_epochs(few_shot, make_shares):
    for seed in range(2):
        few_shot.test("kd test", seed, make_shares(0.6, seed), base=70.0 + seed)
    headings, rows, text = lines_of(few_shot)["few_shot_test"]
    assert headings == [
        "method", "n", "1-shot", "1-shot vs alignment=none", "1-shot vs vanilla", "5-shot", "base top-1",
        "1-shot AUC", "5-shot AUC", "1-shot probe", "5-shot probe", "not done",
    ]  # fmt: skip
    runs = read_study(few_shot.folder).runs
    mean = sum(run.last["test_5shot_auc"] for run in runs) / 2
    assert rows["kd"]["5-shot AUC"].startswith(f"{mean:.2f} ± ")
    assert rows["kd"]["base top-1"] == "70.50 ± 0.71"
    for word in ("epoch ", "oracle", "last", "Teacher"):
        assert word not in text.split("\n### ")[0]
    assert "50 is chance" in text
    assert "logistic regression" in text


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)], ids=["one encoder run", "an encoder run each"])
def test_one_encoder_run_for_all_is_noted(few_shot, seeds):
    for run, seed in enumerate(seeds):
        few_shot.meta("kd", run, 61.0, 61.5, encoder_run={"group": "e" * 12, "seed": seed})
    text = lines_of(few_shot)["meta_baseline"][2]
    note = "All runs start from one encoder run (seed 0): the spread does not cover the encoder's training."
    assert (note in text) == (seeds == (0, 0))


def test_no_encoder_run_is_claimed_for_all_when_one_run_has_none(few_shot):
    few_shot.meta("kd", 0, 61.0, 61.5)
    few_shot.meta("kd", 1, 61.0, 61.5, encoder_run=None)
    assert "encoder run" not in lines_of(few_shot)["meta_baseline"][2]


def test_a_test_knows_teacher_and_encoder_through_the_run_it_tests(few_shot, make_shares):
    group = few_shot.facts("kd", 0)["group"]
    for seed in range(2):
        few_shot.meta("kd", seed, 61.0, 61.5)
        few_shot.test("kd test", seed, make_shares(0.6, seed), tested=group)
    text = lines_of(few_shot)["few_shot_test"][2]
    assert (
        f"Teacher resnet12: test {NOVEL} 60.50 % in the tested runs. All runs share one teacher run" in text
    )
    assert "All runs start from one encoder run (seed 0)" in text
    few_shot.test("kd test", 2, make_shares(0.6, 2), tested=group)  # its tested run lies elsewhere
    assert "encoder run" not in lines_of(few_shot)["few_shot_test"][2]


def test_different_figures_in_one_table_are_said_and_not_ranked(few_shot, make_shares):
    few_shot.test("kd test", 0, make_shares(0.6, 0))
    wide = {"figure": "5shot", "figure_text": "20-way 5-shot accuracy on novel classes"}
    few_shot.test("dkd test", 0, make_shares(0.7, 1), **wide)
    headings, rows, text = lines_of(few_shot)["few_shot_test"]
    assert headings[2] == "accuracy"
    assert "**" not in rows["dkd"]["accuracy"] + rows["kd"]["accuracy"]
    assert (
        "The rows are judged by different figures (5-way 1-shot accuracy on novel classes; "
        "20-way 5-shot accuracy on novel classes): do not compare their means."
    ) in text


def test_rows_that_were_tested_under_other_settings_say_so(few_shot, make_shares):
    few_shot.test("kd test", 0, make_shares(0.6, 0))
    few_shot.test("dkd test", 0, make_shares(0.7, 1), vanilla_group="f" * 12)
    assert "The rows were tested under 2 settings" in lines_of(few_shot)["few_shot_test"][2]


def test_the_terminal_leaves_secondary_columns_and_their_notes_out(few_shot, make_shares, capsys):
    for seed in range(2):
        few_shot.test("kd test", seed, make_shares(0.6, seed), base=70.0)
    study = read_study(few_shot.folder)
    print_tables(study, aggregate(study))
    out = capsys.readouterr().out
    assert "5-shot" in out
    assert "Each run on its episodes" in out
    for word in ("AUC", "probe", "base top-1", "over batches"):
        assert word not in out


def drawn(table, monkeypatch):
    """The figures that are drawn of a table, before they become bytes."""
    figures = []

    def keep(figure):
        figures.append(figure())
        return b""

    monkeypatch.setattr("gda.report.plots._draw", keep)
    curves_png(table)
    differences_png(table)
    return figures


def test_curves_go_through_the_epochs_that_were_tested(few_shot, monkeypatch):
    for seed in range(2):
        few_shot.classifier("kd", seed, 59.0 + seed)
    (figure,) = drawn(tables_of(few_shot)["few_shot_classifier"], monkeypatch)
    whole, late = figure.axes
    for panel in (whole, late):
        (line,) = panel.get_lines()
        assert list(line.get_xdata()) == [5, 10]
        assert list(line.get_ydata()) == [54.5, 59.5]
        assert panel.get_ylabel() == f"test {NOVEL} (%)"


def test_a_test_has_no_curve_but_differences(few_shot, make_shares, monkeypatch):
    for seed in range(2):
        few_shot.test("vanilla test", seed, make_shares(0.6, seed))
        few_shot.test("kd test", seed, make_shares(0.62, seed + 5))
    (figure,) = drawn(tables_of(few_shot)["few_shot_test"], monkeypatch)
    assert figure.axes[-1].get_xlabel() == f"difference in test {NOVEL} (percentage points)"
    monkeypatch.undo()
    pictures = [path.name for path in write_report(few_shot.folder).files if path.suffix == ".png"]
    assert [name.partition("-")[0] for name in pictures] == ["differences"]


def test_the_report_option_tells_no_rows_apart(few_shot):
    for name, value in (("kd a", "true"), ("kd b", "false")):
        config = f"report: {value}\nrecipe: {{epochs: {len(value)}}}\n"
        (few_shot.meta(name, 0, 61.0, 61.5) / "config.yaml").write_text(config)
    labels = [row.label for row in tables_of(few_shot)["meta_baseline"].rows]
    assert sorted(labels) == ["kd (recipe.epochs=4)", "kd (recipe.epochs=5)"]
