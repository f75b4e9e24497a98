"""A grid of runs: checked whole, written down, then run cell after cell."""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import TaskFunction
from omegaconf import DictConfig, open_dict

from gda.config.check import check, fetch_weights, resolved
from gda.config.faults import ConfigFaults, Fault
from gda.config.identity import Identity
from gda.config.inputs import facts_of, identify_run, run_path
from gda.config.weights import weights_at_hand
from gda.errors import RunInterrupted
from gda.report.publish import publish
from gda.tracking.atomic import write_json_atomic
from gda.tracking.console import set_up_logging
from gda.tracking.run_folder import RunFolder

logger = logging.getLogger("gda")


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        number: Its position in the grid.
        overrides: What it changes.
        config: What it composes to.
    """

    number: int
    overrides: tuple[str, ...]
    config: DictConfig


def run_grid(cells: Sequence[Cell], run: TaskFunction) -> list[JobReturn]:
    """Runs every cell of a grid, after checking all of them.

    Args:
        cells: The cells; all of one sweep.
        run: Turns one config into a finished run; raises SystemExit when it can't.

    Raises:
        SystemExit: The grid has faults, or a cell failed, or Ctrl-C was pressed.
    """
    set_up_logging()
    try:
        configs = _checked(cells)
        only_check = bool(configs) and configs[0]["check"]
        if not only_check:
            _fetch_weights(cells, configs)
    except ConfigFaults as error:
        stop_at(error)
    if only_check:
        logger.info("Nothing is wrong with the %d cells of this sweep.", len(cells))
        return [_finished(cell) for cell in cells]
    identities = [identify_run(config) for config in configs]
    paths = [run_path(config, identity) for config, identity in zip(configs, identities, strict=True)]
    _write_plans(configs, identities, paths)
    done = sum(RunFolder(path).is_done() for path in paths)
    logger.info("%d cells: %d finished before, %d to run", len(cells), done, len(cells) - done)
    names = _names(cells)
    reported = [path for path, config in zip(paths, configs, strict=True) if config["report"]]
    started = time.perf_counter()
    failed = []
    for position, (cell, path) in enumerate(zip(cells, paths, strict=True), 1):
        if RunFolder(path).is_done():
            continue
        logger.info("[%d/%d] %s", position, len(cells), names[cell.number])
        with open_dict(cell.config):
            cell.config["report"] = False  # of the whole grid, once, at its end
        try:
            run(cell.config)
        except SystemExit as stop:
            if stop.code == RunInterrupted.exit_code:
                raise
            failed.append((cell, path))
    logger.info(
        "%d of %d cells are finished after %.0f s",
        len(cells) - len(failed),
        len(cells),
        time.perf_counter() - started,
    )
    if failed:
        for cell, path in failed:
            reason = RunFolder(path).status().get("error") or "see above"
            logger.info("failed: %s (%s)", names[cell.number], reason)
        logger.info("The same command tries the failed cells again.")
        raise SystemExit(1)
    for study in dict.fromkeys(path.parent.parent for path in reported):
        publish(study)
    return [_finished(cell) for cell in cells]


def stop_at(faults: ConfigFaults) -> NoReturn:
    """Prints the faults of a grid that was not run, and exits."""
    sys.stderr.write(f"{faults}\n")
    raise SystemExit(faults.exit_code)


def _checked(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Checks all cells; a fault that several cells share is reported once, with their number."""
    configs = []
    found: dict[Fault, list[Cell]] = {}
    for cell in cells:
        try:
            config = resolved(cell.config)
            faults = check(config)
            configs.append(config)
        except ConfigFaults as error:
            faults = list(error.faults)
        for fault in faults:
            found.setdefault(fault, []).append(cell)
    if found:
        names = _names(cells)
        faults = []
        for fault, where in found.items():
            cells_named = "all cells" if len(where) == len(cells) else _some(where, names, len(cells))
            faults.append(Fault(fault.where, f"{fault.what} [in {cells_named}]", fault.fix))
        raise ConfigFaults(faults)
    return configs


def _fetch_weights(cells: Sequence[Cell], configs: Sequence[dict[str, Any]]) -> None:
    """Fetches what the checked cells name, and checks them with it."""
    if all(weights_at_hand(config) for config in configs):
        return
    faults = fetch_weights(configs)
    if faults:
        raise ConfigFaults(faults)
    _checked(cells)


def _names(cells: Sequence[Cell]) -> dict[int, str]:
    """Names each cell by the overrides that not all cells share."""
    shared = set(cells[0].overrides).intersection(*(cell.overrides for cell in cells))
    return {
        cell.number: " ".join(override for override in cell.overrides if override not in shared)
        or "single cell"
        for cell in cells
    }


def _some(cells: Sequence[Cell], names: dict[int, str], total: int) -> str:
    first = names[cells[0].number]
    return f"{len(cells)} of {total} cells, first: {first}" if len(cells) > 1 else f"the cell {first}"


def _write_plans(
    configs: Sequence[dict[str, Any]], identities: Sequence[Identity], paths: Sequence[Path]
) -> None:
    """Writes down what the sweep intends, so that the report can name the cells that are missing.

    One plan for each study that the sweep touches, ``STUDY/sweeps/<time>/plan.json``.
    """
    studies: dict[Path, list[dict[str, Any]]] = {}
    for config, identity, path in zip(configs, identities, paths, strict=True):
        cell = {"folder": f"{path.parent.name}/{path.name}", **facts_of(config, identity)}
        studies.setdefault(path.parent.parent, []).append(cell)
    for study, planned in studies.items():
        folder = study / "sweeps" / time.strftime("%Y-%m-%d_%H-%M-%S")
        folder.mkdir(parents=True, exist_ok=True)
        created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_json_atomic(folder / "plan.json", {"created": created, "cells": planned})


def _finished(cell: Cell) -> JobReturn:
    result = JobReturn(overrides=list(cell.overrides), cfg=cell.config, status=JobStatus.COMPLETED)
    result.return_value = None
    return result
