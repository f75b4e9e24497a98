"""Stays until the jobs of a sweep are over: shows how its studies stand, and every failure at the end."""

import logging
from collections.abc import Sequence
from pathlib import Path

from gda.cluster.plan import Plan
from gda.cluster.state.planned import run_key
from gda.cluster.state.queue import ask_queue
from gda.cluster.state.records import GOES_ON, CellState, StudyState
from gda.cluster.state.table import console_for_states
from gda.cluster.state.watch import watch
from gda.errors import UserError

logger = logging.getLogger("gda")

SECONDS = 10.0
"""Pause between two looks at a study."""


class NotFinished(UserError):
    """Cells are not finished though nothing goes on with them."""


def wait_for(plan: Plan, seconds: float = SECONDS) -> None:
    """Waits until no job makes a cell of a sweep any more.

    Args:
        plan: The sweep.
        seconds: Pause between two looks.

    Raises:
        NotFinished: Some cells are not finished; the message names each with what ended it.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    missing: list[CellState] = []
    for study in plan.studies:
        wanted = {run_key(cell.folder) for cell in plan.of_study(study)}
        state = watch(study, seconds, console_for_states(), until=Over(wanted))
        missing += [run for run in state.inputs if run.state == "failed"]
        missing += [cell for cell in _cells(state, wanted) if cell.state != "done"]
    if missing:
        raise NotFinished(_report(missing, len(plan.cells)))
    logger.info("All %d cells are done.", len(plan.cells))


class Over:
    """Tells whether all is over for some cells; asked twice, because a look may fall between two steps.

    Args:
        wanted: The cells, by :func:`gda.cluster.state.planned.run_key`.
    """

    def __init__(self, wanted: set[str]) -> None:
        self._wanted = wanted
        self._looks = 0

    def __call__(self, state: StudyState) -> bool:
        """Says whether to stop looking."""
        missing = [cell for cell in _cells(state, self._wanted) if cell.state != "done"]
        over = not missing or not (any(cell.state in GOES_ON for cell in missing) or _has_job(missing))
        self._looks = self._looks + 1 if over else 0
        return not missing or self._looks > 1


def _has_job(cells: Sequence[CellState]) -> bool:
    """Says whether a job might still go on with cells, such as after the death of a node."""
    queue = ask_queue({cell.job for cell in cells if cell.job is not None})
    return queue.fault is not None or any(job.alive and not job.stuck for job in queue.states.values())


def _cells(state: StudyState, wanted: set[str]) -> list[CellState]:
    return [cell for cell in state.cells if run_key(cell.folder) in wanted]


def _report(missing: Sequence[CellState], total: int) -> str:
    lines = []
    for run in dict.fromkeys(missing):  # several studies may build on one input
        log = f" ({run.log})" if run.error and run.log and Path(run.log).exists() else ""
        lines.append(f"{run.state}: {run.title}: {run.error or run.detail}{log}")
    return "\n".join([*lines, f"Not all of {total} cells are done; the same command runs what is missing."])
