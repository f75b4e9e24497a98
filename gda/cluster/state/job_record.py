"""The job that has to make a run, as its sweep and SLURM know it."""

from collections.abc import Callable
from dataclasses import dataclass

from gda.cluster.state.queue import JobState
from gda.cluster.state.run_evidence import Attempt, RunEvidence, moment
from gda.cluster.state.submission import SubmittedJob

_CLOCK_SECONDS = 5  # by which the clocks of two machines may differ


@dataclass(frozen=True)
class Job:
    """The job that has to make a run.

    Attributes:
        submitted: What was submitted.
        log: Path of the output of the run's processes; empty where there is none.
        known: What SLURM says of it; None when SLURM no longer knows it, or was not asked.
        asked: Whether SLURM answered.
        since: When the sweep was submitted, in ISO format.
        needs_failed: Tells whether a run that this one builds on has failed.
    """

    submitted: SubmittedJob
    log: str = ""
    known: JobState | None = None
    asked: bool = True
    since: str = ""
    needs_failed: Callable[[], bool] = lambda: False

    @property
    def name(self) -> str:
        """The job in words."""
        return f"job {self.submitted.job}"

    def began(self, run: RunEvidence) -> bool:
        """Says whether what the run's folder says last is this job's doing; where nothing tells, it is."""
        if run.state is None:
            return False
        if run.attempt is not None and self._holds(run.attempt):
            return True
        updated, since = moment(run.updated), moment(self.since)
        later = updated is None or since is None or updated >= since - _CLOCK_SECONDS
        if run.attempt is None:
            return later
        # A job may also give up a run without an attempt, as when the code has changed.
        return later and run.state == "failed" and not self.precedes(run)

    def precedes(self, run: RunEvidence) -> bool:
        """Says whether somebody else has worked on a run since this job was submitted."""
        if run.attempt is None or self._holds(run.attempt):
            return False
        began, since = moment(run.attempt.began), moment(self.since)
        return began is not None and since is not None and began > since

    def _holds(self, attempt: Attempt) -> bool:
        return attempt.slurm_job in (self.submitted.job, self.known.number if self.known else "")
