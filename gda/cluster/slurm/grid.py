"""A grid of runs on a SLURM cluster: checked whole, then what is missing of it is submitted."""

import contextlib
import logging
import shlex
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn

from gda.cluster.cells import Cell
from gda.cluster.frozen_job import freeze_code
from gda.cluster.grid import returns_of, studies_to_report
from gda.cluster.plan import Plan, PlannedRun, write_plans
from gda.cluster.slurm.announcement import announce_jobs, announce_plan, announce_status, announce_submission
from gda.cluster.slurm.check import checked_for_slurm
from gda.cluster.slurm.command import ask
from gda.cluster.slurm.fit import warnings_of
from gda.cluster.slurm.in_queue import UnderWay, orphans_of, under_way
from gda.cluster.slurm.job_arrays import JobArray, arrays_of
from gda.cluster.slurm.leave_or_cancel import leave_or_cancel
from gda.cluster.slurm.submit import Executors, Handover, job_parameters
from gda.cluster.slurm.wait import wait_for
from gda.cluster.state.queue import job_states
from gda.errors import UserError
from gda.report.publish import publish
from gda.tracking.console import set_up_logging
from gda.tracking.lock import FolderLock

logger = logging.getLogger("gda")

_END_SECONDS = 60.0  # for a cancelled job to save and leave its run folder


def submit_grid(
    cells: Sequence[Cell], launcher: Mapping[str, Any], executors: Executors, job: Callable[[Path], Any]
) -> list[JobReturn]:
    """Submits every run that a grid misses; stays only where ``cluster.wait`` says so.

    Args:
        cells: The cells; all of one sweep.
        launcher: The node ``hydra.launcher``.
        executors: Makes submitit's executor.
        job: Makes of a frozen job's file what submitit is to call on the cluster.

    Raises:
        SystemExit: The grid has faults, or SLURM refuses it, or Ctrl-C was pressed, or a cell that was
            waited for is not finished.
    """
    set_up_logging()
    try:
        checked = checked_for_slurm(cells, launcher, executors)
        if checked is None:
            return returns_of(cells)
        plan, site = checked
        submit_plan(plan, launcher, executors, job, site.largest_array)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        sys.stderr.write(f"{error.filename or 'A file'} can't be written: {error.strerror or error}. ")
        sys.stderr.write("Put that right (or set runs=FOLDER), then issue the command again.\n")
        raise SystemExit(UserError.exit_code) from None
    done = all(cell.is_done() for cell in plan.cells)
    for study in studies_to_report(cells, plan):
        if done:
            publish(study)
        else:
            logger.info("The report, once all is done: python -m gda.report %s", shlex.quote(study.name))
    return returns_of(cells)


def missing_runs(plan: Plan, to_do: Sequence[PlannedRun], known: UnderWay) -> list[PlannedRun]:
    """Returns the runs to submit: cells that nobody makes, and what they build on.

    Args:
        plan: The sweep.
        to_do: Its unfinished runs, each behind those that it needs.
        known: Which of them are made already.
    """
    by_folder = {run.folder: run for run in to_do}
    wanted: set[Path] = set()

    def want(folder: Path) -> None:
        if folder in by_folder and folder not in known.jobs:
            wanted.add(folder)
            for need in by_folder[folder].needs:
                want(need)

    for cell in plan.cells:
        if cell.folder not in known.elsewhere:
            want(cell.folder)
    return [run for run in to_do if run.folder in wanted]


def submit_plan(
    plan: Plan,
    launcher: Mapping[str, Any],
    executors: Executors,
    job: Callable[[Path], Any],
    largest_array: int,
) -> None:
    """Submits what is neither finished nor under way, and waits for it where that was asked for.

    Args:
        plan: The sweep, checked.
        launcher: The node ``hydra.launcher``.
        executors: Makes submitit's executor.
        job: Makes of a frozen job's file what submitit is to call on the cluster.
        largest_array: Most jobs of one job array.

    Raises:
        UserError: SLURM refuses it or can't be asked, or a cell that was waited for is not finished.
        RunInterrupted: Ctrl-C was pressed; the message says what became of the jobs.
    """
    cluster = plan.cells[0].config["cluster"]
    with contextlib.ExitStack() as alone:
        for folder in sorted({study.parent for study in plan.studies}):
            # No other command submits the same runs while this one looks and submits.
            alone.enter_context(FolderLock(folder).acquire(wait=True, on_wait=logger.info))
        sweeps = write_plans(plan)
        to_do = plan.runs_to_do()
        known = _known(plan, to_do)
        handed = Handover(sweeps, job_parameters(launcher, cluster), cluster, executors, job, known.jobs)
        try:
            _submit_missing(plan, to_do, handed, known, largest_array)
            alone.close()
            if cluster["wait"]:
                wait_for(plan)
        except KeyboardInterrupt:
            before = [known.jobs[cell.folder] for cell in plan.cells if cell.folder in known.jobs]
            leave_or_cancel(list(dict.fromkeys([*before, *handed.ids])))


def _known(plan: Plan, to_do: Sequence[PlannedRun]) -> UnderWay:
    """Finds out what is made already, and clears away the jobs that never will."""
    if not to_do:
        return UnderWay()
    _cancel(orphans_of(plan), "left behind by a command that was killed while it submitted")
    known = under_way(to_do)
    _cancel(sorted(known.stuck), "waiting for a run that has failed")
    return known


def _submit_missing(
    plan: Plan, to_do: Sequence[PlannedRun], handed: Handover, known: UnderWay, largest_array: int
) -> None:
    missing = missing_runs(plan, to_do, known)
    announce_plan(plan, missing, known)
    if not missing:
        logger.info("Nothing to submit." if to_do else "Nothing to run.")
        announce_status(plan)
        return
    side_by_side = handed.cluster["side_by_side"]
    arrays = arrays_of(plan, missing, known.jobs, side_by_side, largest_array)
    announce_jobs(arrays, handed.parameters, side_by_side)
    for line in warnings_of(plan.cells[0].folder.parents[2]):
        logger.info(line)
    _submit(arrays, handed)
    announce_submission(plan, handed.submitted, handed.log_folders)


def _submit(arrays: Sequence[JobArray], handed: Handover) -> None:
    for study in dict.fromkeys(array.study for array in arrays):
        runs = [run for array in arrays if array.study == study for run in array.runs]
        freeze_code(handed.sweeps[study], [run.config for run in runs])
    try:
        for array in arrays:
            handed.submit(array)
    except (UserError, OSError) as error:
        raise UserError(f"{error}\n{_undone(handed)}") from error


def _undone(handed: Handover) -> str:
    """Cancels what a sweep has submitted before it was refused, and says so."""
    if not handed.ids:
        return "Nothing was submitted."
    named = ", ".join(handed.ids)
    if handed.cancel():
        return f"Cancelled what this command had submitted before: {named}."
    return f"What this command had submitted before could not be cancelled: scancel {' '.join(handed.ids)}"


def _cancel(ids: Collection[str], why: str) -> None:
    """Cancels jobs, and gives them time to leave their run folders."""
    if not ids:
        return
    logger.info("Cancelled, %s: %s", why, ", ".join(ids))
    ask("scancel", *ids, timeout=60)
    deadline = time.monotonic() + _END_SECONDS
    while any(state.alive for state in job_states(ids).values()) and time.monotonic() < deadline:
        time.sleep(1)
