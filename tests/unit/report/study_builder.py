"""A builder of synthetic studies: run folders as the training code writes them."""

import hashlib
import json
from pathlib import Path


def group_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:12]


class StudyBuilder:
    """Writes run folders and sweep plans below ``runs/demo``."""

    def __init__(self, runs: Path, name: str = "demo") -> None:
        self.runs = runs
        self.folder = runs / name
        self.folder.mkdir(parents=True)

    def facts(self, name: str, seed: int, **changes) -> dict:
        """Facts of a run; `name` makes the group, `distiller+alignment` the label."""
        distiller, _, alignment = name.partition(" ")[0].partition("+")
        teacher = None if distiller == "vanilla" and not alignment else "resnet20"
        facts = {
            "format": 1,
            "study": "demo",
            "group": group_of(name),
            "seed": seed,
            "label": name.partition(" ")[0],
            "distiller": distiller,
            "alignment": alignment or "none",
            "ground_truth": "labels",
            "dataset": "digits",
            "recipe": "digits",
            "task": "classification",
            "teacher": teacher,
            "student": "resnet8",
            "pair": "resnet20 -> resnet8" if teacher else "resnet8",
            "twin_group": group_of(name.replace(f"+{alignment}", "")) if alignment else None,
            "vanilla_group": group_of("vanilla"),
            "created": "2026-01-01T00:00:00+00:00",
            "selection": "validation",
            "teacher_run": {"group": "t" * 12, "seed": 0, "folder": "teachers/t"} if teacher else None,
            "git": {"commit": "c" * 40, "dirty": False},
            "versions": {"torch": "2.8.0"},
        }
        return facts | changes

    def path(self, name: str, seed: int) -> Path:
        return self.folder / f"{name.replace(' ', '_')}-{group_of(name)}" / f"seed{seed}"

    def run(
        self,
        name: str,
        seed: int,
        last: float | None = None,
        best: float | None = None,
        oracle: float | None = None,
        state: str = "done",
        epochs: int = 4,
        epoch: int | None = None,
        error: str | None = None,
        curve: list[float] | None = None,
        config: str | None = None,
        extra: dict | None = None,
        **changes,
    ) -> Path:
        """Write one run folder; without `best` the run held out no validation images."""
        path = self.path(name, seed)
        path.mkdir(parents=True)
        selection = "validation" if best is not None else "none"
        (path / "run.json").write_text(json.dumps(self.facts(name, seed, selection=selection, **changes)))
        result = None
        if state == "done":
            figures = {"epoch": epochs, "test_top1": last, "test_agreement": 90.0, "test_ece": 0.03} | (
                extra or {}
            )
            result = {
                "last": figures,
                "best": None if best is None else {"epoch": epochs - 1, "test_top1": best},
                "test_top1_oracle": oracle,
                "oracle_epoch": 2,
            }
        status = {
            "state": state,
            "epoch": epochs if epoch is None else epoch,
            "epochs": epochs,
            "updated": "2026-01-01T01:00:00+00:00",
            "error": error,
            "attempt": 1,
            "result": result,
        }
        (path / "status.json").write_text(json.dumps(status))
        rows = [{"epoch": 0, "teacher_test_top1": 95.2}]
        values = curve if curve is not None else [50.0] * (epochs - 1) + [last or 60.0]
        rows += [{"epoch": i, "test_top1": value, "train_loss": 1.0 / i} for i, value in enumerate(values, 1)]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if config is not None:
            (path / "config.yaml").write_text(config)
        return path

    def plan(self, cells: list[tuple[str, int]], stamp: str = "2026-01-01_00-00-00", **changes) -> None:
        """Write a sweep plan of (name, seed) cells, without the task as the plans have it."""
        listed = []
        for name, seed in cells:
            facts = self.facts(name, seed, **changes)
            for key in ("format", "study", "task", "created", "selection", "teacher_run", "git", "versions"):
                del facts[key]
            listed.append(facts | {"folder": self.path(name, seed).relative_to(self.folder).as_posix()})
        folder = self.folder / "sweeps" / stamp
        folder.mkdir(parents=True)
        content = {"created": "2026-01-01T00:00:00+00:00", "cells": listed}
        (folder / "plan.json").write_text(json.dumps(content))
