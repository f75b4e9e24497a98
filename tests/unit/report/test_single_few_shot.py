from gda.report.single import run_report


def tables_of(page):
    """The tables under the third-level headings: heading -> first cell -> cells by column."""
    found = {}
    for block in page.split("## Time")[0].split("\n### ")[1:]:
        heading, *lines = block.splitlines()
        rows = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines if line.startswith("|")]
        found[heading] = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    return found


def test_the_page_of_a_test_has_a_row_for_each_number_of_shots(few_shot, make_shares):
    folder = few_shot.test("kd test", 0, make_shares(0.6, 0), base=71.5)
    page = run_report(folder)
    tables = tables_of(page)
    assert list(tables) == ["Episodes", "Base classes"]
    assert list(tables["Episodes"]) == ["1", "5"]
    from gda.report.collect import read_run

    last = read_run(folder)[0].last
    row = tables["Episodes"]["5"]
    assert row["accuracy %"] == f"{last['test_5shot']:.2f} ± {last['test_5shot_interval']:.2f}"
    assert row["± over batches"] == f"{last['test_5shot_batch_interval']:.2f}"
    assert row["AUC %"] == f"{last['test_5shot_auc']:.2f} ± {last['test_5shot_auc_interval']:.2f}"
    assert row["probe %"] == f"{last['test_5shot_probe']:.2f} ± {last['test_5shot_probe_interval']:.2f}"
    assert row["episodes"] == "80"
    assert tables["Base classes"]["tested student, test"]["top-1 %"] == "71.50"
    assert "50 is chance" in page
    assert "the means of batches of episodes, as published" in page
    assert "| episodes.safetensors | figures of every episode |" in page
    assert "| encoder weights | runs/teachers/e/seed0/last.pt |" in page
    assert "Oracle" not in page
    assert "| epochs |" not in page


def test_the_page_of_a_damaged_test_still_has_its_figures(few_shot, make_shares):
    folder = few_shot.test("kd test", 0, {"test_1shot": make_shares(0.6, 0)["test_1shot"]})
    (folder / "episodes.safetensors").write_bytes(b"rubbish")
    (row,) = tables_of(run_report(folder))["Episodes"].values()
    assert (row["AUC %"], row["probe %"], row["episodes"]) == ("n/a", "n/a", "n/a")
    assert row["accuracy %"] != "n/a"


def test_the_page_of_a_meta_learner(few_shot):
    page = run_report(few_shot.meta("kd", 0, 61.0, 61.5))
    tables = tables_of(page)
    assert list(tables) == ["Episodes", "Learned temperature"]
    rows = tables["Episodes"]
    assert list(rows) == [
        "last epoch, validation",
        "best validation epoch (3), validation",
        "teacher, test",
        "last epoch, test",
        "best validation epoch (3), test",
    ]
    assert rows["last epoch, test"] == {
        "": "last epoch, test",
        "1-shot %": "61.00 ± 0.72",
        "5-shot %": "76.00 ± 0.55",
        "loss": "0.9500",
        "ECE": "0.0625",
        "agreement %": "71.50",
        "teacher KL": "0.2500",
    }
    assert rows["best validation epoch (3), validation"]["1-shot %"] == "62.50 ± 0.81"
    assert rows["teacher, test"]["1-shot %"] == "60.50 ± 0.70"
    assert tables["Learned temperature"]["last epoch"]["temperature"] == "11.0000"
    assert tables["Learned temperature"]["best validation epoch (3)"]["temperature"] == "10.7500"
    assert "The best epoch was chosen on validation episodes" in page
    assert "KL(teacher || student)" in page.replace("\\|", "|")


def test_the_page_of_a_classifier(few_shot):
    page = run_report(few_shot.classifier("kd", 0, 59.0))
    tables = tables_of(page)
    assert list(tables) == ["Episodes", "Base classes"]
    assert tables["Episodes"]["last epoch, test"] == {
        "": "last epoch, test",
        "1-shot %": "59.00 ± 0.70",
        "5-shot %": "79.00 ± 0.50",
    }
    base = tables["Base classes"]
    assert base["teacher, test"] | {"top-1 %": "79.00", "ECE": "n/a"} == base["teacher, test"]
    last = {"top-1 %": "80.00", "ECE": "0.0312", "agreement %": "81.00", "teacher KL": "0.5000"}
    assert base["last epoch, test"] | last == base["last epoch, test"]
    assert "Oracle: 59.00 % at epoch 10" in page
    assert "no epoch was chosen" in page
