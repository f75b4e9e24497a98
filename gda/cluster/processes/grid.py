"""A grid of runs, here: checked whole, frozen, then made by processes of their own, several at a time."""

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn

from gda.cluster.cells import Cell
from gda.cluster.frozen_job import FrozenJob, freeze_code, read_job, write_job
from gda.cluster.grid import announce, checked_plan, returns_of, studies_to_report
from gda.cluster.plan import Plan, PlannedRun, write_plans
from gda.cluster.processes.side_by_side import run_side_by_side
from gda.config.ranks import ranks_of
from gda.errors import RunInterrupted
from gda.report.publish import publish
from gda.tracking.console import set_up_logging

logger = logging.getLogger("gda")


def run_grid_in_processes(cells: Sequence[Cell]) -> list[JobReturn]:
    """Makes every cell of a grid in a process of its own, ``cluster.side_by_side`` at a time.

    A process that dies takes no other with it. What runs is what was composed and checked here: the
    processes get frozen configs, and stop where the code has changed in the meantime.

    Args:
        cells: The cells; all of one sweep.

    Raises:
        SystemExit: The grid has faults, or a cell failed, or a signal has stopped it.
    """
    set_up_logging()
    plan = checked_plan(cells)
    if plan is None:
        return returns_of(cells)
    sweeps = write_plans(plan)
    to_do = announce(plan)
    started = time.perf_counter()
    if to_do:
        jobs = _frozen(plan, to_do, sweeps, bool(cells[0].config.cluster.allow_changed_code))
        end = run_side_by_side(jobs, cells[0].config.cluster.side_by_side)
        done = sum(cell.is_done() for cell in plan.cells)
        spent = time.perf_counter() - started
        logger.info("%d of %d cells are finished after %.0f s", done, len(cells), spent)
        for line in end.failures():
            logger.info(line)
        if end.exit_code == RunInterrupted.exit_code:
            sys.stderr.write("Interrupted. What was finished is kept; the same command continues.\n")
        elif not end.all_done:
            logger.info("The same command tries the failed cells again.")
        if not end.all_done:
            raise SystemExit(end.exit_code)
    for study in studies_to_report(cells, plan):
        publish(study)
    return returns_of(cells)


def _frozen(
    plan: Plan, to_do: Sequence[PlannedRun], sweeps: dict[Path, Path], allow_changed_code: bool
) -> list[FrozenJob]:
    """Writes a frozen job for each study and each number of ranks."""
    studies = plan.studies_of_runs()
    groups: dict[tuple[Path, int], list[PlannedRun]] = {}
    for run in to_do:
        groups.setdefault((studies[run.folder], ranks_of(run.config)), []).append(run)
    jobs = []
    for study, sweep in sweeps.items():
        mine = [(ranks, runs) for (owner, ranks), runs in groups.items() if owner == study]
        if mine:
            freeze_code(sweep, [run.config for _, runs in mine for run in runs])
        for number, (ranks, runs) in enumerate(mine):
            path = write_job(
                sweep / "jobs" / f"{number}.json",
                runs,
                sweep=f"{study.name}/{sweep.name}",
                ranks=ranks,
                allow_changed_code=allow_changed_code,
            )
            jobs.append(read_job(path))
    return jobs
