"""Plain training is one run whatever the teacher; a teacher only measures it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gda.app import finish
from gda.errors import UserError
from gda.report.aggregate import aggregate
from gda.report.collect import read_study

Tiny = Callable[..., dict[str, Any]]
PLAIN = ("distiller=vanilla", "alignment=none")


def launch(tiny: Tiny, runs: Path, *overrides: str) -> Path:
    return finish({**tiny(*overrides), "runs": str(runs)}).folder


def test_fidelity_counts_only_against_the_tables_own_teacher(tiny: Tiny, tmp_path: Path) -> None:
    launch(tiny, tmp_path, *PLAIN, "teacher=resnet8", "teacher.seed=1")
    launch(tiny, tmp_path, "distiller=kd", "alignment=none", "teacher=resnet8", "teacher.seed=2")
    (table,) = aggregate(read_study(tmp_path / "main"))
    rows = {row.label: row for row in table.rows}
    assert rows["kd"].agreement.n == 1
    assert rows["vanilla"].last.n == 1
    assert rows["vanilla"].agreement.n == 0


def test_a_run_records_which_weights_taught_it(tiny: Tiny, tmp_path: Path) -> None:
    folder = launch(tiny, tmp_path, "distiller=kd", "alignment=none", "teacher.seed=3")
    facts = json.loads((folder / "run.json").read_text())
    assert facts["teacher_run"]["seed"] == 3
    assert facts["teacher_identity"] == f"run:{facts['teacher_run']['group']}:seed3:last"


def test_plain_training_does_not_go_on_with_another_teacher(
    tiny: Tiny, tmp_path: Path, teacher_weights: Path
) -> None:
    folder = launch(tiny, tmp_path, *PLAIN, "teacher=none")
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "state": "interrupted", "result": None}))
    with pytest.raises(UserError, match="begun with teacher=none"):
        launch(tiny, tmp_path, *PLAIN, f"teacher.checkpoint={teacher_weights}")
    launch(tiny, tmp_path, *PLAIN, "teacher=none")


def test_a_teacher_whose_weights_are_gone_is_made_again(tiny: Tiny, tmp_path: Path) -> None:
    launch(tiny, tmp_path, "distiller=kd", "alignment=none")
    (weights,) = (tmp_path / "teachers").glob("*/seed0/last.pt")
    before = torch.load(weights, weights_only=True)["model"]
    for name in ("last.pt", "previous.pt", "best.pt"):
        (weights.parent / name).unlink()
    launch(tiny, tmp_path, "distiller=kd", "alignment=none", "seed=1")
    after = torch.load(weights, weights_only=True)["model"]
    assert all(torch.equal(before[key], after[key]) for key in before)
