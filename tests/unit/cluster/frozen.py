"""Frozen jobs for tests: runs that need nothing, under a folder of the test's own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gda.cluster.frozen_job import FrozenJob, read_job, write_job
from gda.cluster.plan import PlannedRun

SWEEP = "main/2026-01-01_00-00-00"


def planned(
    folder: Path, config: dict[str, Any], needs: Sequence[Path] = (), needed: Sequence[str] = ()
) -> PlannedRun:
    return PlannedRun(folder, f"cell {folder.name}", config, {}, 1, tuple(needs), tuple(needed))


def frozen(runs_folder: Path, runs: Sequence[PlannedRun], **options: Any) -> FrozenJob:
    """Writes a job to ``RUNS/main/sweeps/<id>/jobs/0.json`` and reads it back."""
    study, _, name = SWEEP.partition("/")
    path = runs_folder / study / "sweeps" / name / "jobs/0.json"
    return read_job(write_job(path, runs, sweep=SWEEP, **options))


def status(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "status.json").read_text())
    assert isinstance(content, dict)
    return content
