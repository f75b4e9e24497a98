"""Run folders as the trainer writes them."""

import json
import math
from pathlib import Path
from typing import Any

CONFIG = """\
seed: 0
study: demo
recipe: {name: digits, epochs: 8, lr: 0.05, milestones: [3, 5], warmup: null}
distiller: {name: kd, terms: {kd: {weight: 0.9, temperature: 4.0}}}
note: "NOTE"
"""


def metric_row(epoch: int) -> dict[str, Any]:
    loss = "nan" if epoch == 3 else math.exp(-epoch / 7)
    return {"epoch": epoch, "train/loss": loss, "test/top1": 10.0 + epoch, "lr": 0.1 / (epoch + 1)}


def timing_row(epoch: int) -> dict[str, Any]:
    seconds = {"train_seconds": 1.0, "evaluate_seconds": 0.25, "save_seconds": 0.25}
    return {"epoch": epoch, **seconds, "images_per_second": 1000.0 + epoch}


def write_rows(folder: Path, epochs: int) -> None:
    for name, row in (("metrics.jsonl", metric_row), ("timing.jsonl", timing_row)):
        (folder / name).write_text("".join(json.dumps(row(epoch)) + "\n" for epoch in range(epochs)))


def write_status(folder: Path, state: str, epoch: int) -> None:
    result = None
    if state == "done":
        result = {"last": {"test_top1": 10.0 + epoch}, "best": {"test_top1": 90.5}, "test_top1_oracle": 91.0}
    (folder / "status.json").write_text(json.dumps({"state": state, "epoch": epoch, "result": result}))


def write_run(
    runs: Path, seed: int = 0, epochs: int = 8, state: str = "running", study: str = "demo"
) -> Path:
    """Write a run folder below ``runs``."""
    folder = runs / study / "kd-resnet20-0a1b2c" / f"seed{seed}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.replace("NOTE", "x" * 7000))
    facts = {
        "id": f"f00d{seed}",
        "study": study,
        "group": "0a1b2c",
        "seed": seed,
        "label": "KD",
        "distiller": "kd",
        "alignment": "none",
        "ground_truth": "labels",
        "dataset": "digits",
        "recipe": "digits",
        "task": "classification",
        "teacher": None,
        "student": "resnet20",
        "pair": "resnet20",
        "created": "2024-05-06T07:08:09+00:00",
        "git": {"commit": "c0ffee"},
    }
    (folder / "run.json").write_text(json.dumps(facts))
    write_rows(folder, epochs)
    write_status(folder, state, epochs - 1)
    return folder
