import json
import logging
from pathlib import Path

import pytest

from gda.errors import UserError
from gda.report.single import run_report, write_run_report

FIGURES = {"test_top5": 99.5, "test_loss": 0.25, "test_teacher_kl": 0.125, "validation_top1": 92.0}
ORIGIN = {
    "host": "node7",
    "python": "3.11.7",
    "git": {"commit": "c" * 40, "dirty": True},
    "versions": {"torch": "2.8.0", "timm": None},
    "cpu": {"model": "Some CPU", "usable": 8},
    "gpus": ["H200"],
    "teacher_weights": "runs/teachers/t/seed0/last.pt",
}


def line(page: str, start: str) -> list[str]:
    """The cells of the only line of a table that begins with ``start``."""
    (found,) = [row for row in page.splitlines() if row.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def write_timing(folder: Path) -> None:
    rows = [
        {"epoch": 1, "train_seconds": 100.0, "images_per_second": 1.0},  # done again after a kill
        {
            "epoch": 1,
            "train_seconds": 2.0,
            "evaluate_seconds": 1.0,
            "save_seconds": 0.5,
            "images_per_second": 300,
        },
        {
            "epoch": 2,
            "train_seconds": 1.0,
            "evaluate_seconds": 1.0,
            "save_seconds": 0.5,
            "images_per_second": 600,
        },
    ]
    (folder / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_with_validation(study) -> None:
    folder = study.run("kd+gda", 1, last=93.456, best=92.1, epochs=2, extra=FIGURES, **ORIGIN)
    write_timing(folder)
    page = run_report(folder)
    assert page.startswith("# kd+gda: resnet20 -> resnet8, seed 1\n")
    for name, value in (("data set", "digits"), ("recipe", "digits"), ("seed", "1"), ("study", "demo")):
        assert line(page, name) == [name, value]
    assert line(page, "method")[1] == "kd, alignment gda; ground truth: labels"
    assert line(page, "teacher, test")[1] == "95.20"
    assert line(page, "last epoch, test")[1:] == ["93.46", "99.50", "0.2500", "0.0300", "90.00", "0.1250"]
    assert line(page, "last epoch, validation")[1:3] == ["92.00", "n/a"]
    assert line(page, "best validation epoch (1), test")[1] == "92.10"
    assert "chosen on validation images" in page
    assert "Oracle" not in page
    assert line(page, "seconds")[1] == "6.0 (train 3.0 s, evaluate 2.0 s, save 1.0 s)"
    assert line(page, "training throughput")[1] == "400 images/s"
    assert line(page, "git commit")[1] == f"{'c' * 40}, with uncommitted changes"
    assert line(page, "versions")[1] == "torch 2.8.0"
    assert line(page, "host")[1] == "node7"
    assert line(page, "in")[1] == str(folder)
    assert line(page, "run.json")
    assert "best.pt" not in page  # listed is what is there


def test_an_oracle_is_called_what_it_is(study) -> None:
    page = run_report(study.run("kd", 0, last=93.0, oracle=94.25))
    (oracle,) = [row for row in page.splitlines() if "Oracle" in row]
    assert "94.25 % test top-1 at epoch 2" in oracle
    assert "selected on the test set" in oracle
    assert "best validation" not in page
    assert line(page, "training throughput")[1] == "n/a"


def test_the_page_is_written_beside_the_run(study) -> None:
    folder = study.run("kd", 0, last=93.0)
    page = write_run_report(folder)
    assert page == folder / "report.md"
    assert page.read_text() == run_report(folder)
    assert not list(folder.glob(".report*"))


def test_a_page_that_cannot_be_written_is_a_warning(study, caplog: pytest.LogCaptureFixture) -> None:
    folder = study.run("kd", 0, last=93.0)
    (folder / "timing.jsonl").write_text("rubbish\n{}\n")
    assert write_run_report(folder) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "The run is finished" in record.getMessage()
    (folder / "run.json").write_text("{}")
    with pytest.raises(UserError, match="format"):
        run_report(folder)
