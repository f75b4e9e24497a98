"""A grid of runs, here: checked whole, written down, then run cell after cell."""

import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import TaskFunction
from omegaconf import OmegaConf, open_dict

from gda.cluster.cells import Cell, check_cells, fetch_for
from gda.cluster.estimate import estimated_seconds
from gda.cluster.frozen_job import SWEEP_VARIABLE
from gda.cluster.plan import Plan, PlannedRun, plan_of, write_plans
from gda.cluster.process_group import joined
from gda.cluster.state.eta import in_words
from gda.config.faults import ConfigFaults
from gda.errors import RunInterrupted, UserError
from gda.ranks import StoppedByMain, from_main, is_main, rank_count
from gda.report.publish import publish
from gda.tracking.console import set_up_logging
from gda.tracking.run_folder import RunFolder

logger = logging.getLogger("gda")


def checked_plan(cells: Sequence[Cell]) -> Plan | None:
    """Checks a grid whole and works out what it needs; nothing has been run or written then.

    Returns:
        The plan; nothing where only the check was asked for (``check=true``).

    Raises:
        SystemExit: The grid has faults; they stand on standard error.
    """
    try:
        configs = check_cells(cells)
        if configs[0]["check"]:
            logger.info("Nothing is wrong with the %d cells of this sweep.", len(cells))
            return None
        fetch_for(cells, configs)
    except ConfigFaults as error:
        stop_at(error)
    return plan_of(cells, configs)


def run_grid(cells: Sequence[Cell], run: TaskFunction) -> list[JobReturn]:
    """Runs every cell of a grid, after checking all of them.

    Args:
        cells: The cells; all of one sweep.
        run: Turns one config into a finished run; raises SystemExit when it can't.

    Raises:
        SystemExit: The grid has faults, or a cell failed, or Ctrl-C was pressed.
    """
    device = OmegaConf.select(cells[0].config, "trainer.device", default="auto")
    try:
        with joined(str(device)):
            set_up_logging(quiet=not is_main())
            plan = from_main(lambda: checked_plan(cells))
            if plan is not None:
                _run_all(cells, plan, run)
    except StoppedByMain as error:  # rank 0 has said why
        raise SystemExit(error.exit_code) from None
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(error.exit_code) from None
    return returns_of(cells)


def _run_all(cells: Sequence[Cell], plan: Plan, run: TaskFunction) -> None:
    """Runs what a checked grid misses; where several processes train together, all of them call it."""
    sweeps = from_main(lambda: write_plans(plan))
    announce(plan)
    reported = studies_to_report(cells, plan)
    started = time.perf_counter()
    failed = []
    for position, (cell, planned) in enumerate(zip(cells, plan.cells, strict=True), 1):
        if from_main(planned.is_done):
            continue
        logger.info("[%d/%d] %s", position, len(cells), planned.title)
        with open_dict(cell.config):
            cell.config["report"] = False  # of the whole grid, once, at its end
        os.environ[SWEEP_VARIABLE] = f"{planned.study.name}/{sweeps[planned.study].name}"
        try:
            run(cell.config)
        except SystemExit as stop:
            if stop.code == RunInterrupted.exit_code or rank_count() > 1:
                raise  # the others of this run may be at another point
            failed.append(planned)
    spent = time.perf_counter() - started
    logger.info("%d of %d cells are finished after %.0f s", len(cells) - len(failed), len(cells), spent)
    if failed:
        for planned in failed:
            reason = RunFolder(planned.folder).status().get("error") or "see above"
            logger.info("failed: %s (%s)", planned.title, reason)
        logger.info("The same command tries the failed cells again.")
        raise SystemExit(1)
    for study in reported if is_main() else ():
        publish(study)


def announce(plan: Plan) -> list[PlannedRun]:
    """Says what a sweep is going to do, before it does it.

    Returns:
        The runs that are not finished (:meth:`gda.cluster.plan.Plan.runs_to_do`).
    """
    to_do = plan.runs_to_do()
    done, total = sum(cell.is_done() for cell in plan.cells), len(plan.cells)
    cells_named = "1 cell" if total == 1 else f"{total} cells"
    logger.info("%s: %d finished before, %d to run", cells_named, done, total - done)
    cells = {cell.folder for cell in plan.cells}
    inputs = [run.title for run in to_do if run.folder not in cells]
    if inputs:
        logger.info("made first, because cells build on it: %s", ", ".join(inputs))
    estimate = estimate_in_words(to_do)
    if estimate is not None:
        logger.info(estimate)
    return to_do


def estimate_in_words(runs: Sequence[PlannedRun]) -> str | None:
    """Says how long runs take, one after the other, as far as past runs tell; None where none does."""
    wanted = [{**run.facts, "epochs": run.epochs} for run in runs]
    estimates = estimated_seconds(runs[0].folder.parents[2], wanted) if runs else []
    told = [seconds for seconds in estimates if seconds is not None]
    if not told:
        return None
    rest = "" if len(told) == len(runs) else f" for {len(told)} of {len(runs)} runs; the others are new"
    return f"estimated from past runs: {in_words(sum(told))} of computing{rest}"


def studies_to_report(cells: Sequence[Cell], plan: Plan) -> list[Path]:
    """Returns the folders of the studies whose report was asked for (``report=true``)."""
    asked = [planned.study for cell, planned in zip(cells, plan.cells, strict=True) if cell.config.report]
    return list(dict.fromkeys(asked))


def stop_at(faults: ConfigFaults) -> NoReturn:
    """Prints the faults of a grid that was not run, and exits."""
    sys.stderr.write(f"{faults}\n")
    raise SystemExit(faults.exit_code)


def returns_of(cells: Sequence[Cell]) -> list[JobReturn]:
    """Returns what Hydra wants to hear of cells that have been seen to."""
    returns = []
    for cell in cells:
        result = JobReturn(overrides=list(cell.overrides), cfg=cell.config, status=JobStatus.COMPLETED)
        result.return_value = None
        returns.append(result)
    return returns
