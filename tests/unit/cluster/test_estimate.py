import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gda.cluster.estimate import estimated_seconds

KD = {
    "task": "classification",
    "pair": "resnet56 -> resnet20",
    "label": "kd",
    "dataset": "cifar100",
    "recipe": "crd",
    "student": "resnet20",
}
WANTED = {**KD, "seed": 3, "epochs": 240}


def write_run(
    runs: Path, name: str, facts: Mapping[str, Any], seconds: list[float], created: str = "2024-05-01"
) -> Path:
    """Writes a past run whose epochs took so long, training, evaluation and saving together."""
    folder = runs / "some_study" / name / "seed0"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"format": 1, "created": created, **facts}))
    lines = [
        {"epoch": k, "train_seconds": 0.5 * s, "evaluate_seconds": 0.3 * s, "save_seconds": 0.2 * s}
        for k, s in enumerate(seconds, 1)
    ]
    (folder / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def estimate(runs: Path, **changes: Any) -> float | None:
    (found,) = estimated_seconds(runs, [{**WANTED, **changes}])
    return found


def test_nothing_is_known_without_past_runs(tmp_path: Path) -> None:
    assert estimated_seconds(tmp_path / "nowhere", [WANTED, WANTED]) == [None, None]
    assert estimated_seconds(tmp_path, []) == []


def test_epochs_times_the_median_epoch(tmp_path: Path) -> None:
    write_run(tmp_path, "a", KD, [30.0, 10.0, 10.0, 11.0, 900.0])  # a warm-up, and a suspended laptop
    assert estimate(tmp_path) == pytest.approx(240 * 11.0)
    assert estimate(tmp_path, epochs=1) == pytest.approx(11.0)


def test_the_most_alike_run_decides(tmp_path: Path) -> None:
    write_run(tmp_path, "same_student", {**KD, "label": "vanilla", "pair": "resnet20"}, [1.0])
    assert estimate(tmp_path) == pytest.approx(240.0)
    write_run(tmp_path, "same_pair", {**KD, "label": "dkd"}, [2.0])
    assert estimate(tmp_path) == pytest.approx(480.0)
    write_run(tmp_path, "same_method", KD, [3.0])
    assert estimate(tmp_path) == pytest.approx(720.0)
    assert estimate(tmp_path, label="dkd") == pytest.approx(480.0)
    assert estimate(tmp_path, pair="vgg13 -> resnet20") == pytest.approx(240 * 2.0)  # of 1, 2 and 3


@pytest.mark.parametrize("fact", ["task", "dataset", "recipe", "student"])
def test_another_kind_of_run_says_nothing(tmp_path: Path, fact: str) -> None:
    others = {"pair": "x -> y"} if fact == "student" else {}
    write_run(tmp_path, "a", {**KD, **others, fact: "another"}, [1.0])
    assert estimate(tmp_path) is None


def test_several_runs_are_asked_and_answered_in_order(tmp_path: Path) -> None:
    write_run(tmp_path, "a", KD, [1.0])
    write_run(tmp_path, "b", {**KD, "dataset": "cifar10"}, [2.0])
    wanted = [{**WANTED, "dataset": name, "epochs": 10} for name in ("cifar10", "digits", "cifar100")]
    assert estimated_seconds(tmp_path, wanted) == [pytest.approx(20.0), None, pytest.approx(10.0)]


def test_the_newest_ten_runs_count(tmp_path: Path) -> None:
    for day in range(1, 21):
        seconds = 50.0 if day <= 10 else float(day)
        write_run(tmp_path, f"run{day}", KD, [seconds], created=f"2024-05-{day:02}T00:00:00+00:00")
    assert estimate(tmp_path, epochs=1) == pytest.approx(15.5)


def test_damaged_runs_are_passed_over(tmp_path: Path) -> None:
    write_run(tmp_path, "good", KD, [2.0, 2.0, 2.0])
    torn = write_run(tmp_path, "torn", KD, [4.0, 4.0])
    with (torn / "timing.jsonl").open("a") as file:
        file.write(
            '[]\n{"epoch": 3}\nnull\n{"train_seconds": "x", "evaluate_seconds": 1, "save_seconds": 1}\n'
        )
        file.write('{"epoch": 3, "train_sec')
    (write_run(tmp_path, "no_facts", KD, [99.0]) / "run.json").write_text("{")
    (write_run(tmp_path, "odd_facts", KD, [99.0]) / "run.json").write_text("[1]")
    (write_run(tmp_path, "no_times", KD, []) / "timing.jsonl").write_bytes(b"\xff\xfe\n")
    (write_run(tmp_path, "a_folder", KD, []) / "timing.jsonl").unlink()
    (tmp_path / "some_study" / "a_folder" / "seed0" / "timing.jsonl").mkdir()
    assert estimate(tmp_path, epochs=1) == pytest.approx(3.0)


def test_a_long_journal_is_read_from_its_end(tmp_path: Path) -> None:
    write_run(tmp_path, "a", KD, [1000.0] * 2000 + [2.0] * 800)
    assert estimate(tmp_path, epochs=1) == pytest.approx(2.0)


def test_neither_torch_nor_the_config_is_loaded() -> None:
    script = (
        "import sys, gda.cluster.estimate\n"
        "print([n for n in ('torch', 'numpy', 'omegaconf', 'mlflow', 'gda.config') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
