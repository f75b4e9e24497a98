"""All that is known of why a run failed: its traceback, else the end of its job's output."""

from dataclasses import dataclass

from gda.cluster.state.job_log import job_tail, run_traceback
from gda.cluster.state.records import CellState
from gda.cluster.state.run_evidence import moment


@dataclass(frozen=True)
class Failure:
    """Why a run failed.

    Attributes:
        source: The file that says so.
        text: What it says.
    """

    source: str
    text: str


def failure_text(run: CellState) -> Failure | None:
    """Returns why a run failed; None for a run that has not failed.

    Args:
        run: The run.
    """
    if run.state != "failed":
        return None
    if not run.in_job_log:
        text = run_traceback(run.folder, moment(run.began or ""))
        if text is not None:
            return Failure(str(run.folder / "run.log"), text)
    tail = job_tail(run.log) if run.log else None
    if tail is not None:
        return Failure(str(run.log), tail)
    return Failure(str(run.folder), f"There is no traceback. {run.error}")
