"""What a job does when SLURM wants its node back.

SIGUSR2 comes some time before the time limit: what runs has been saved by then, and the job is put back
into the queue. SIGTERM comes when the job is preempted or cancelled: SLURM itself brings a preempted job
back. In both cases the job waits to be ended, because a job that ends by itself is over for SLURM.
"""

import logging
import os
import signal
import subprocess
import time

from gda.cluster.failed_run import mark_failed
from gda.cluster.frozen_job import FrozenJob
from gda.errors import RunPreempted, UserError
from gda.ranks import is_main
from gda.tracking.run_folder import slurm_job_id

logger = logging.getLogger("gda")

WAIT_SECONDS = 600.0
"""How long it waits to be ended: longer than the grace time of a partition, as far as those are known."""

_ATTEMPTS, _PAUSE_SECONDS = 3, 5.0  # a busy controller may not answer at once


def give_node_back(job: FrozenJob, number: int) -> int:
    """Puts the job back into the queue where that is up to it, and waits to be ended.

    Every process of the job calls it, after what it ran has been saved.

    Args:
        job: The job.
        number: The signal that it got.

    Returns:
        The exit code with which to end, not 0.
    """
    for each in (signal.SIGTERM, signal.SIGUSR2):  # all is saved: what else SLURM sends changes nothing
        signal.signal(each, signal.SIG_IGN)
    if number == signal.SIGUSR2 and is_main():
        returns = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        reason: str | None
        if returns >= job.max_requeues:
            reason = (
                f"Out of time after {returns} returns of its job. Set cluster.timeout_min or "
                "cluster.max_requeues higher; the same command continues it."
            )
        else:
            refused = _requeue()
            reason = refused and f"Out of time, and SLURM does not take the job back: {refused}"
        if reason:
            logger.error(reason)
            for run in job.runs:
                mark_failed(run.folder, UserError(reason))  # those that are done stay so
            return UserError.exit_code
    _wait_to_be_ended()
    return RunPreempted.exit_code


def _requeue() -> str | None:
    """Puts this job back into the queue; returns why SLURM refuses."""
    command = ["scontrol", "requeue", slurm_job_id() or "without id"]
    said = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
            continue
        if done.returncode == 0:
            logger.info("Out of time: saved, and put back into the queue.")
            return None
        said = " ".join(done.stderr.split())
    return said or "without a word"


def _wait_to_be_ended() -> None:
    """Outlasts the grace time: only a job that SLURM itself has ended comes back."""
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        time.sleep(1)
