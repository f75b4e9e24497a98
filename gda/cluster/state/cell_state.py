"""What state a run is in, judged from its folder and from what SLURM says of its job."""

from collections.abc import Mapping
from dataclasses import dataclass

from gda.cluster.state.job_log import job_error, last_error, run_traceback
from gda.cluster.state.job_record import Job
from gda.cluster.state.queue import JobState
from gda.cluster.state.run_evidence import SILENT_SECONDS, RunEvidence, moment

STATES = (
    "done", "running", "queued", "preempted", "waiting", "interrupted", "cancelled", "blocked", "failed",
    "lost", "unknown",
)  # fmt: skip
"""Every state, in the order in which they are shown."""

CONTINUES = "the same command continues it"
AGAIN = "the same command runs it again"

_MISSED_SECONDS = 30  # three beats of a lock
_START_SECONDS = 180  # a job that has started has to find its node, its files and its imports
_WAITS = {
    "Dependency": "waits for a run that it builds on",
    "Resources": "waits for free nodes",
    "Priority": "other jobs come first",
    "BeginTime": "SLURM lets it begin in a moment",
    "JobArrayTaskLimit": "waits for others of its sweep",
    "PartitionTimeLimit": "its time limit is longer than the partition's",
    "PartitionNodeLimit": "the partition has not so many nodes",
    "BadConstraints": "no node is as it asks for",
}
_ENDS = {
    "OUT_OF_MEMORY": "it ran out of memory",
    "TIMEOUT": "it reached its time limit before it could save",
    "DEADLINE": "it reached its deadline",
    "NODE_FAIL": "its node died",
    "BOOT_FAIL": "its node did not start",
    "PREEMPTED": "it was preempted before it could save",
}


@dataclass(frozen=True)
class Verdict:
    """The state of a run.

    Attributes:
        state: One of :data:`STATES`.
        detail: What is known beyond that, in a few words.
        advice: What to do about it; empty where nothing has to be done.
        error: The line that says why it failed.
        in_job_log: Whether the job failed before the run had begun, so that the job's log tells more.
    """

    state: str
    detail: str = ""
    advice: str = ""
    error: str | None = None
    in_job_log: bool = False


_NEVER_STARTED = Verdict("blocked", "never started: a run that it builds on has failed", AGAIN)


def judge(run: RunEvidence, job: Job | None) -> Verdict:
    """Decides what state a run is in.

    Args:
        run: What its folder says.
        job: The job that has to make it; None when it was never submitted.
    """
    if run.state == "done":
        return Verdict("done")
    if run.goes_on and not _outlived(run, job):
        return _goes_on(run, job)
    if job is None:
        return _without_job(run)
    if job.known is None:
        return _forgotten(run, job) if job.asked else _unasked(run, job)
    if job.known.pending:
        return _pending(run, job, job.known)
    if job.known.alive:
        return _in_running_job(run, job, job.known)
    return _without_job(run) if job.precedes(run) else _after_job(run, job, job.known)


def _outlived(run: RunEvidence, job: Job | None) -> bool:
    """Says whether the job of a silent run has ended or waits, as SLURM has it: nobody makes the run then."""
    if job is None or job.known is None or not job.began(run):
        return False
    return (job.known.pending or not job.known.alive) and (run.silent_seconds or 0) > _MISSED_SECONDS


def _goes_on(run: RunEvidence, job: Job | None) -> Verdict:
    where = f" ({job.name})" if job and job.known and job.known.alive else ""
    if run.state != "running":
        return Verdict("running", f"starts{where}")
    if run.epoch is None or not run.epochs:
        return Verdict("running", f"at {run.progress}{where}")
    if run.epoch >= run.epochs:
        return Verdict("running", f"finishes{where}")
    return Verdict("running", f"in epoch {run.epoch + 1} of {run.epochs}{where}")


def _without_job(run: RunEvidence) -> Verdict:
    if run.fault:
        return Verdict("unknown", run.fault, AGAIN)
    if run.state is None:
        return Verdict("waiting", "nothing has begun it", "the same command runs it")
    return _left_behind(run, f"its process is gone{_silence(run)}")


def _left_behind(run: RunEvidence, lost: str) -> Verdict:
    """Judges a run that has begun and that nothing goes on with."""
    verdicts = {
        "failed": Verdict("failed", f"at {run.progress}", AGAIN, run.error or "it left no error"),
        "interrupted": Verdict("interrupted", f"at {run.progress}", CONTINUES),
        "preempted": Verdict("interrupted", f"at {run.progress}; it does not come back by itself", CONTINUES),
        "running": Verdict("lost", f"at {run.progress}: {lost}", CONTINUES),
    }
    return verdicts[str(run.state)]


def _forgotten(run: RunEvidence, job: Job) -> Verdict:
    """Judges by the folder alone: SLURM forgets jobs, sooner where it keeps no accounts."""
    gone = f"{job.name} is gone from SLURM"
    if run.state is not None:
        return _left_behind(run, f"{gone}{_silence(run)}")
    error = job_error(job.log, began=False)
    if error:
        return Verdict("failed", f"{gone}; the run had not begun", AGAIN, error, in_job_log=True)
    if job.needs_failed():
        return _NEVER_STARTED
    return Verdict("lost", run.fault or f"{gone} without having begun it", AGAIN)


def _unasked(run: RunEvidence, job: Job) -> Verdict:
    """Judges by the folder alone, and takes for granted that the job is still there."""
    if run.state == "preempted":
        return Verdict("preempted", f"saved at {run.progress}; {job.name} had to come back")
    if run.state is None or not job.began(run):
        return Verdict("queued", f"{job.name}, when last heard of")
    return _left_behind(run, f"no sign of life{_silence(run)}")


def _pending(run: RunEvidence, job: Job, known: JobState) -> Verdict:
    if known.stuck:
        return Verdict(
            "blocked",
            "never starts: a run that it builds on has failed",
            f"scancel {job.submitted.job}, then {AGAIN}",
        )
    held = known.reason.startswith("JobHeld") or "held" in known.reason or known.state != "PENDING"
    why = "held" if held else _WAITS.get(known.reason, "waits")
    why += f" ({known.reason})" if known.reason else ""
    advice = f"scontrol release {job.submitted.job} lets it go on" if held else ""
    if job.began(run) and run.state in ("running", "preempted", "interrupted"):
        kept = "saved at" if run.state == "preempted" else "stopped after"
        return Verdict("preempted", f"{kept} {run.progress}; {job.name} comes back: {why}", advice)
    again = "; failed before" if run.state == "failed" else ""
    return Verdict("queued", f"{job.name}: {why}{again}", advice)


def _in_running_job(run: RunEvidence, job: Job, known: JobState) -> Verdict:
    if not job.began(run):
        if len(job.submitted.runs) > 1:
            return Verdict("queued", f"waits for its turn in {job.name}")
        return Verdict("running", f"{job.name} runs for {_span(known.seconds)}; the run has not begun")
    if run.state == "failed":
        return _left_behind(run, "")
    if run.state in ("preempted", "interrupted"):
        return Verdict(
            "preempted", f"saved at {run.progress}; SLURM is about to bring {job.name} back, or to end it"
        )
    if known.seconds < _START_SECONDS or (run.silent_seconds or 0) < SILENT_SECONDS:
        return Verdict("running", f"at {run.progress}; {job.name} starts it or gives it up")
    return Verdict(
        "lost",
        f"at {run.progress}: no sign of life{_silence(run)}, but SLURM says that {job.name} runs",
        f"scancel {job.submitted.job}, then {CONTINUES}",
    )


def _after_job(run: RunEvidence, job: Job, known: JobState) -> Verdict:
    began = job.began(run) and run.state is not None
    if began and run.state == "failed":
        return _left_behind(run, "")
    if known.state == "CANCELLED":
        if not began and (known.orphaned or (known.unstarted and job.needs_failed())):
            return _NEVER_STARTED
        return Verdict(
            "cancelled",
            f"{job.name}, at {run.progress}" if began else f"{job.name}, before it began",
            CONTINUES if began else AGAIN,
        )
    if began and run.state != "running":
        return Verdict(
            "interrupted", f"saved at {run.progress}; {job.name} ended ({known.state.lower()})", CONTINUES
        )
    if known.state == "COMPLETED":
        place = f"at {run.progress}" if began else "not begun"
        return Verdict("lost", f"{place}, but {job.name} says that it completed", AGAIN)
    place = f"at {run.progress}" if began else "before it began"
    advice, why = CONTINUES if began else AGAIN, _why(run, job, known)
    return Verdict("failed", f"{job.name}, {place}", advice, why, in_job_log=not began)


def _why(run: RunEvidence, job: Job, known: JobState) -> str:
    """Says why a run failed that could not say it itself."""
    if known.state in _ENDS:
        return f"{_ENDS[known.state]} (SLURM: {known.state})"
    began = job.began(run)
    text = run_traceback(run.folder, moment(run.attempt.began)) if began and run.attempt else None
    error = (last_error(text) if text else None) or job_error(job.log, began)
    return error or f"it died without a word (SLURM: {known.state})"


def _silence(run: RunEvidence) -> str:
    return f" for {_span(run.silent_seconds)}" if run.silent_seconds is not None else ""


def _span(seconds: float) -> str:
    """Writes a time in its largest unit."""
    units: Mapping[str, int] = {"days": 86400, "h": 3600, "min": 60}
    return next(
        (f"{seconds / size:.0f} {unit}" for unit, size in units.items() if seconds >= 1.5 * size),
        f"{seconds:.0f} s",
    )
