import csv
import io
import subprocess
import sys

import pytest

from gda.errors import UserError
from gda.report import write_report
from gda.report.plots import curves_png, differences_png
from gda.report.published import published_line


def page(study):
    return write_report(study.folder).page.read_text(encoding="utf-8")


def row(text, start):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} ")]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_figures_of_the_page(study):
    for seed, (plain, kd) in enumerate(
        [(90.0, 91.0), (90.4, 91.8), (89.8, 90.4), (90.2, 91.4), (90.6, 91.4)]
    ):
        study.run("vanilla", seed, last=plain, best=plain)
        study.run("kd", seed, last=kd, best=kd)
    text = page(study)
    # half-width 2.776445 * sqrt(.1 / 5) = 0.392649 around 1.0
    assert row(text, "kd")[:6] == [
        "kd", "5", "**91.20 ± 0.53**", "**91.20 ± 0.53**", "–", "+1.00 [+0.61, +1.39]† (n=5)",
    ]  # fmt: skip
    assert row(text, "vanilla")[2] == "90.20 ± 0.32"
    assert "oracle" not in text
    assert "Teacher resnet20: test top-1 95.20 %." in text
    assert "†: this interval excludes 0" in text
    assert "Fewer than three seeds" not in text
    assert "10 of 10 runs finished." in text


def test_a_single_seed_has_no_spread_and_is_no_result(study):
    study.run("vanilla", 0, last=90.0)
    study.run("kd", 0, last=91.0)
    text = page(study)
    assert row(text, "kd")[2] == "**91.00 ± n/a**"
    assert "+1.00 [n/a] (n=1)" in text
    assert "Fewer than three seeds, not a result: vanilla (n=1); kd (n=1)." in text


def test_without_validation_the_best_epoch_is_an_oracle_and_says_so(study):
    for seed in range(3):
        study.run("vanilla", seed, last=90.0 + seed, oracle=95.0 + seed)
        study.run("kd", seed, last=91.0 + seed, oracle=96.0 + seed)
    text = page(study)
    assert "| oracle (selected on test) |" in text
    assert "best (on validation)" not in text
    assert row(text, "kd")[3] == "97.00 ± 1.00"  # never bold
    assert "the highest of the 4 test figures of each run. It was selected on the test set" in text
    assert "best:" not in text


def test_what_is_missing_is_listed_with_seeds_and_reasons(study):
    study.run("vanilla", 0, last=90.0)
    study.run("vanilla", 1, last=90.0)
    study.run("kd", 0, state="failed", epoch=1, error="CUDA | out of memory")
    study.run("kd", 1, state="interrupted", epoch=3)
    study.plan([("kd", 0), ("kd", 1), ("kd", 2), ("vanilla", 0)])
    text = page(study)
    assert "seed 0 failed: CUDA \\| out of memory; seed 1 interrupted at epoch 3/4" in text
    assert "seed 2 planned, no run found" in text
    assert "vanilla: seed 2 missing here but present in other rows." in text
    assert row(text, "kd")[-1] == "1 failed, 1 unfinished, 1 missing"
    assert "2 of 5 runs finished; 1 failed, 1 unfinished, 1 planned but missing." in text


def test_origins_that_differ_are_noted(study):
    study.run("vanilla", 0, last=90.0)
    study.run("kd", 0, last=90.0, git={"commit": "d" * 40, "dirty": True}, versions={"torch": "2.9.0"})
    text = page(study)
    assert "different git commits: cccccccccc (1 of the runs), dddddddddd (1 of the runs)" in text
    assert "different torch versions: 2.8.0 (1 of the runs), 2.9.0 (1 of the runs)" in text
    assert "1 of 2 runs come from a working tree with uncommitted changes" in text


def test_csv_keeps_full_precision_and_leaves_the_unknown_empty(study):
    study.run("vanilla", 0, last=90.1)
    study.run("kd", 0, last=91.123456789012, oracle=92.0)
    study.plan([("kd", 1)])
    folder = write_report(study.folder).folder
    methods = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text())))
    assert [line["method"] for line in methods] == ["vanilla", "kd"]
    assert float(methods[1]["last_mean"]) == 91.123456789012
    assert float(methods[1]["last_vs_vanilla_mean"]) == 91.123456789012 - 90.1
    assert (methods[1]["last_std"], methods[1]["best_mean"], methods[1]["last_vs_vanilla_low"]) == (
        "",
        "",
        "",
    )
    assert (methods[1]["seeds_done"], methods[1]["seeds_missing"]) == ("0", "1")
    runs = list(csv.DictReader(io.StringIO((folder / "runs.csv").read_text())))
    assert [(line["label"], line["seed"], line["state"]) for line in runs] == [
        ("kd", "0", "done"),
        ("kd", "1", "missing"),
        ("vanilla", "0", "done"),
    ]
    done = next(line for line in runs if line["label"] == "kd" and line["state"] == "done")
    assert (done["last_test_top1"], done["oracle_test_top1"], done["best_test_top1"]) == (
        "91.123456789012",
        "92.0",
        "",
    )
    assert (study.folder / done["folder"]).is_dir()


def test_pictures_are_embedded_and_leave_no_temporary_files(study):
    for seed in range(2):
        study.run("vanilla", seed, last=90.0 + seed)
        study.run("kd", seed, last=91.0)
    report = write_report(study.folder)
    pictures = [path for path in report.files if path.suffix == ".png"]
    assert len(pictures) == 2
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert all(f"]({path.name})" in report.page.read_text() for path in pictures)
    assert {path.name for path in report.folder.iterdir()} == {path.name for path in report.files}


def test_output_goes_elsewhere_and_twice_gives_the_same_page(study, tmp_path):
    study.run("kd", 0, last=91.0)
    first = write_report(study.folder, tmp_path / "a" / "b").page.read_bytes()
    assert write_report(study.folder, tmp_path / "a" / "b").page.read_bytes() == first
    assert not (study.folder / "report").exists()


def test_nothing_finished_is_said_and_has_no_pictures(study):
    study.run("kd", 0, state="running", epoch=1)
    report = write_report(study.folder)
    assert "No finished run yet" in report.page.read_text()
    assert curves_png(report.tables[0]) is None
    assert differences_png(report.tables[0]) is None
    assert [path.name for path in report.files] == ["report.md", "table.csv", "runs.csv"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no study folder"):
        write_report(tmp_path / "nothing")


def test_published_figures_are_for_their_recipe_and_pair_only():
    line = published_line("cifar100", "crd", "vgg13 -> vgg8")
    assert line is not None
    assert "KD 72.98" in line
    assert "DKD 74.68 (mdistiller README)" in line
    mixed = published_line("cifar100", "crd", "cifar_resnet50 -> mobilenetv2")
    assert mixed is not None
    assert "teacher 79.34, student 64.60, KD 67.35, CRD 69.11 (RepDistiller README)" in mixed
    assert "CTKD 68.67, KD+LSKD 69.02, DKD+LSKD 70.45 (logit-standardization-KD README)" in mixed
    assert published_line("cifar100", "w2s", "vgg13 -> vgg8") is None
    assert published_line("cifar10", "crd", "vgg13 -> vgg8") is None
    w2s = published_line("cifar100", "w2s_v1", "vgg8 -> vgg13")
    assert w2s is not None
    assert "AdaptConf 76.84" in w2s


def test_a_figure_is_named_with_the_source_that_has_it_and_left_out_where_none_has():
    line = published_line("cifar100", "crd", "resnet32x4 -> resnet8x4")
    assert line is not None
    assert "CTKD README" not in line
    assert "CTKD 73.39, KD+LSKD 76.62, DKD+LSKD 77.01 (logit-standardization-KD README)" in line
    shuffled = published_line("cifar100", "crd", "wrn_40_2 -> shufflenetv1")
    assert shuffled is not None
    assert "LSKD" not in shuffled
    assert "DIST 76.40, WTTM 75.42 (TTM README)" in shuffled


def test_reading_and_tables_need_no_heavy_library(study):
    study.run("kd", 0, state="running", epoch=1)
    code = (
        "import sys, pathlib; from gda.report import write_report\n"
        "from gda.report.tables import print_tables\n"
        f"r = write_report(pathlib.Path({str(study.folder)!r}))\n"
        "print_tables(r.study, r.tables)\n"
        "heavy = {'torch', 'mlflow', 'matplotlib', 'timm', 'hydra'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
