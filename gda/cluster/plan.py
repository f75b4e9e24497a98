"""What a sweep intends: its cells, the runs that they build on, and the folder where this is written down."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gda.cluster.cells import Cell, titles_of
from gda.config.inputs import facts_of, identify_run, run_path, run_title
from gda.config.stages import needs_of, runs_before
from gda.tracking.atomic import write_json_atomic
from gda.tracking.run_folder import RunFolder


@dataclass(frozen=True)
class PlannedRun:
    """One run that a sweep needs.

    Attributes:
        folder: Its run folder.
        title: What it is called on the terminal.
        config: Its resolved config.
        facts: What it is in plain words (:func:`gda.config.inputs.facts_of`).
        epochs: Length of its training; 1 for a test.
        needs: Folders of the runs that must be done before it.
        needed: Checkpoints for which other runs wait for it; empty for a cell.
    """

    folder: Path
    title: str
    config: dict[str, Any]
    facts: dict[str, Any]
    epochs: int
    needs: tuple[Path, ...]
    needed: tuple[str, ...] = ()

    @property
    def study(self) -> Path:
        """Folder of its study."""
        return self.folder.parent.parent

    def is_done(self) -> bool:
        """Says whether the run has finished, and still holds what others need of it."""
        done = RunFolder(self.folder).is_done()
        return done and all((self.folder / name).exists() for name in self.needed)


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep.

    Attributes:
        cells: The grid, in order.
        inputs: Runs that cells build on, such as teachers; each stands behind those that it needs itself.
            A cell that another cell builds on, as a test does on its training, stands here, too.
    """

    cells: tuple[PlannedRun, ...]
    inputs: tuple[PlannedRun, ...]

    def runs_to_do(self) -> list[PlannedRun]:
        """Returns what is not finished, each run once, behind all that it needs.

        An input is left out when every cell that builds on it is finished.
        """
        runs = {run.folder: run for run in (*self.cells, *self.inputs)}
        wanted: dict[Path, PlannedRun] = {}

        def want(run: PlannedRun) -> None:
            if run.folder in wanted or run.is_done():
                return
            for folder in run.needs:
                want(runs[folder])
            wanted[run.folder] = run

        for cell in self.cells:
            want(runs[cell.folder])
        return list(wanted.values())

    def of_study(self, study: Path) -> list[PlannedRun]:
        """Returns the cells of one study."""
        return [cell for cell in self.cells if cell.study == study]

    def studies_of_runs(self) -> dict[Path, Path]:
        """Returns for which study each run is made: its own, or that of the first cell that builds on it."""
        runs = {run.folder: run for run in (*self.cells, *self.inputs)}
        studies = {cell.folder: cell.study for cell in self.cells}

        def claim(run: PlannedRun, study: Path) -> None:
            for folder in run.needs:
                studies.setdefault(folder, study)
                claim(runs[folder], study)

        for cell in self.cells:
            claim(cell, cell.study)
        return studies

    @property
    def studies(self) -> list[Path]:
        """Folders of the studies that the cells belong to."""
        return list(dict.fromkeys(cell.study for cell in self.cells))


def plan_of(cells: Sequence[Cell], configs: Sequence[Mapping[str, Any]]) -> Plan:
    """Works out what a checked grid needs.

    Args:
        cells: The cells.
        configs: Their resolved configs, free of faults.
    """
    titles = titles_of(cells)
    inputs: dict[Path, PlannedRun] = {}
    planned = []
    for cell, config in zip(cells, configs, strict=True):
        needs = _add_inputs(config, inputs)
        planned.append(_planned(config, titles[cell.number], needs))
    return Plan(tuple(planned), tuple(inputs.values()))


def write_plans(plan: Plan) -> dict[Path, Path]:
    """Writes down what a sweep intends, so that report and status can name the cells that are missing.

    Returns:
        By study folder, the sweep folder ``STUDY/sweeps/<time>`` that holds its ``plan.json``.
    """
    folders = {}
    for study in plan.studies:
        cells = plan.of_study(study)
        asked = {folder for cell in cells for folder in _all_needs(cell, plan)}
        folder = _new_folder(study / "sweeps", time.strftime("%Y-%m-%d_%H-%M-%S"))
        content = {
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "cells": [
                {
                    "folder": "/".join(cell.folder.parts[-2:]),
                    "title": cell.title,
                    "epochs": cell.epochs,
                    **cell.facts,
                }
                for cell in cells
            ],
            "inputs": [
                {"folder": str(run.folder), "title": run.title} for run in plan.inputs if run.folder in asked
            ],
        }
        write_json_atomic(folder / "plan.json", content)
        folders[study] = folder
    return folders


def _planned(
    config: Mapping[str, Any], title: str, needs: tuple[Path, ...], needed: tuple[str, ...] = ()
) -> PlannedRun:
    identity = identify_run(config)
    epochs = config["recipe"]["epochs"] if needs_of(config).trains else 1
    folder, facts = run_path(config, identity), facts_of(config, identity)
    # The report of a study is written once, at the end of the sweep.
    return PlannedRun(folder, title, {**config, "report": False}, facts, epochs, needs, needed)


def _add_inputs(config: Mapping[str, Any], found: dict[Path, PlannedRun]) -> tuple[Path, ...]:
    """Adds the runs that a config builds on, however deep; returns the folders of its own."""
    folders = []
    for role, before in runs_before(config).items():
        needed: tuple[str, ...] = (f"{config[role]['checkpoint_select']}.pt",)
        identity = identify_run(before)
        folder = run_path(before, identity)
        if folder in found:
            needed = tuple(dict.fromkeys((*found[folder].needed, *needed)))
        needs = _add_inputs(before, found)
        title = run_title(before, identity, is_input=True)
        found[folder] = _planned(before, title, needs, needed)
        folders.append(folder)
    return tuple(folders)


def _all_needs(run: PlannedRun, plan: Plan) -> set[Path]:
    inputs = {each.folder: each for each in plan.inputs}
    below = set(run.needs)
    for folder in run.needs:
        below |= _all_needs(inputs[folder], plan)
    return below


def _new_folder(parent: Path, name: str) -> Path:
    """Makes a folder, with a number where an earlier sweep of the same second has the name."""
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}_{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
            continue
        return folder
