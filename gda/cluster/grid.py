"""A grid of runs, here: checked whole, written down, then run cell after cell."""

import logging
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import TaskFunction
from omegaconf import open_dict

from gda.cluster.cells import Cell, check_cells, fetch_for
from gda.cluster.plan import Plan, plan_of, write_plans
from gda.config.faults import ConfigFaults
from gda.errors import RunInterrupted
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
    set_up_logging()
    plan = checked_plan(cells)
    if plan is None:
        return returns_of(cells)
    write_plans(plan)
    done = sum(cell.is_done() for cell in plan.cells)
    logger.info("%d cells: %d finished before, %d to run", len(cells), done, len(cells) - done)
    reported = [planned.study for cell, planned in zip(cells, plan.cells, strict=True) if cell.config.report]
    started = time.perf_counter()
    failed = []
    for position, (cell, planned) in enumerate(zip(cells, plan.cells, strict=True), 1):
        if planned.is_done():
            continue
        logger.info("[%d/%d] %s", position, len(cells), planned.title)
        with open_dict(cell.config):
            cell.config["report"] = False  # of the whole grid, once, at its end
        try:
            run(cell.config)
        except SystemExit as stop:
            if stop.code == RunInterrupted.exit_code:
                raise
            failed.append(planned)
    logger.info(
        "%d of %d cells are finished after %.0f s",
        len(cells) - len(failed),
        len(cells),
        time.perf_counter() - started,
    )
    if failed:
        for planned in failed:
            reason = RunFolder(planned.folder).status().get("error") or "see above"
            logger.info("failed: %s (%s)", planned.title, reason)
        logger.info("The same command tries the failed cells again.")
        raise SystemExit(1)
    for study in dict.fromkeys(reported):
        publish(study)
    return returns_of(cells)


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
