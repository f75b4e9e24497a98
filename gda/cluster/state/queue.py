"""What SLURM knows of jobs: one look at the queue, and one at the accounts of jobs that have left it."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

_ID = re.compile(r"(\d+)(?:[_+]\d+)?")
_ENDED = frozenset(
    (
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
        "PREEMPTED", "REVOKED", "TIMEOUT",
    )
)  # fmt: skip
_NEVER = "DependencyNeverSatisfied"
# Fields of fixed width: a reason may hold any character that could part them.
_FIELDS = {"JobArrayID": 40, "JobID": 20, "State": 20, "RestartCnt": 10, "TimeUsed": 20, "Reason": 80}


@dataclass(frozen=True)
class JobState:
    """What SLURM says of one job.

    Attributes:
        state: SLURM's word: ``PENDING``, ``RUNNING``, ``COMPLETED``, ``OUT_OF_MEMORY``, ...
        reason: Why it waits or ended, in SLURM's word; empty where there is none.
        restarts: How often it was requeued; 0 for a job that has left the queue.
        seconds: How long it has run since its last start, or ran.
        number: Its plain number, which for a task of an array is not the id that names it.
    """

    state: str
    reason: str = ""
    restarts: int = 0
    seconds: int = 0
    number: str = ""

    @property
    def alive(self) -> bool:
        """Whether it waits, runs or is about to end or to come back."""
        return self.state not in _ENDED

    @property
    def pending(self) -> bool:
        """Whether it waits in the queue."""
        return self.alive and self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")

    @property
    def stuck(self) -> bool:
        """Whether it waits for a job that has failed, and so never starts."""
        return self.pending and self.reason == _NEVER

    @property
    def unstarted(self) -> bool:
        """Whether it was ended before it ran."""
        return self.state == "CANCELLED" and self.seconds == 0 and self.restarts == 0

    @property
    def orphaned(self) -> bool:
        """Whether SLURM ended it because a job that it waited for has failed."""
        return self.unstarted and self.reason == _NEVER


@dataclass(frozen=True)
class Queue:
    """One look at SLURM.

    Attributes:
        states: What it says, by job id; a job that it no longer knows is missing.
        fault: Why it could not be asked, as a sentence; None when it answered.
    """

    states: Mapping[str, JobState] = field(default_factory=dict)
    fault: str | None = None


class _NoAnswer(Exception):
    """A SLURM command failed; the message is a sentence."""


def job_states(ids: Collection[str], timeout: float = 10) -> dict[str, JobState]:
    """Asks SLURM for the states of jobs.

    Args:
        ids: Ids of jobs (``123``) or tasks of job arrays (``123_4``).
        timeout: Seconds that each command may take.

    Returns:
        The state by id, without the jobs that SLURM no longer knows; empty where SLURM can't be asked.
    """
    return dict(ask_queue(ids, timeout).states)


def ask_queue(ids: Collection[str], timeout: float = 10) -> Queue:
    """Asks SLURM for the states of jobs, and says when it could not be asked.

    One call of squeue; one of sacct for the jobs that have left the queue. Neither is called when
    there is nothing to ask.

    Args:
        ids: Ids of jobs (``123``) or tasks of job arrays (``123_4``); others are passed over.
        timeout: Seconds that each command may take.
    """
    wanted = {job for job in ids if _ID.fullmatch(job)}
    if not wanted:
        return Queue()
    try:
        found = _in_queue(wanted, timeout)
    except _NoAnswer as error:
        return Queue(fault=str(error))
    left = wanted - found.keys()
    if left:
        # Many a cluster keeps no accounts: what became of these jobs, the run folders know.
        with contextlib.suppress(_NoAnswer):
            found |= _in_accounts(left, timeout)
    return Queue(found)


def _in_queue(wanted: Collection[str], timeout: float) -> dict[str, JobState]:
    """Returns the jobs that the queue still knows: SLURM drops a job some minutes after its end."""
    layout = ",".join(f"{name}:{width}" for name, width in _FIELDS.items())
    try:
        lines = _lines("squeue", ["-h", "-r", "-t", "all", "-j", _jobs(wanted), "-O", layout], timeout)
    except _NoAnswer as error:
        # So squeue puts it when the only job that it was asked for has left the queue.
        if "Invalid job id" in str(error):
            return {}
        raise
    found = {}
    for line in lines:
        job, number, state, restarts, used, reason = _cut(line)
        if job in wanted and state:
            reason = "" if reason == "None" else reason
            found[job] = JobState(state, reason, _whole(restarts), _seconds(used), number)
    return found


def _in_accounts(wanted: Collection[str], timeout: float) -> dict[str, JobState]:
    """Returns how jobs ended that have left the queue."""
    options = ["-n", "-P", "-X", "-j", _jobs(wanted), "-o", "JobID,JobIDRaw,State,ElapsedRaw"]
    found = {}
    for line in _lines("sacct", options, timeout):
        job, number, state, seconds = [*line.split("|"), "", "", "", ""][:4]
        state = state.partition(" ")[0]  # CANCELLED by 1000
        # A job that the queue has dropped does not run, even where the accounts missed its end.
        if job in wanted and state in _ENDED:
            found[job] = JobState(state, seconds=_whole(seconds), number=number)
    return found


def _jobs(ids: Iterable[str]) -> str:
    """Names jobs on a command line; arrays as wholes, because one may have a thousand tasks."""
    return ",".join(sorted({job.partition("_")[0].partition("+")[0] for job in ids}, key=int))


def _lines(program: str, options: list[str], timeout: float) -> list[str]:
    path = shutil.which(program)
    if path is None:
        raise _NoAnswer(f"there is no {program} on this machine")
    # A person's own filters and formats, which would hide jobs here.
    environment = {
        name: text for name, text in os.environ.items() if not name.startswith(("SQUEUE_", "SACCT_"))
    }
    try:
        done = subprocess.run(
            [path, *options], capture_output=True, timeout=timeout, env=environment, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise _NoAnswer(f"{program} gave no answer within {timeout:g} s") from None
    except OSError as error:
        raise _NoAnswer(f"{program} can't be run ({error.strerror})") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise _NoAnswer(f"{program} failed: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout.decode(errors="replace").splitlines()


def _cut(line: str) -> list[str]:
    parts = []
    for width in _FIELDS.values():
        parts.append(line[:width].strip())
        line = line[width:]
    return parts


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _seconds(text: str) -> int:
    """Reads SLURM's ``days-hours:minutes:seconds``; 0 where it says none."""
    days, _, clock = text.rpartition("-")
    total = 0
    for part in clock.split(":"):
        total = 60 * total + _whole(part)
    return total + 86400 * _whole(days)
