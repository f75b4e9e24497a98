"""Ctrl-C while jobs are in the queue: the person at the terminal says what becomes of them."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from gda.cluster.slurm.command import ask
from gda.errors import RunInterrupted


def leave_or_cancel(ids: Sequence[str]) -> NoReturn:
    """Asks whether to cancel jobs; where nobody can answer, and by default, they are left alone.

    Args:
        ids: Jobs and whole arrays, for scancel.

    Raises:
        RunInterrupted: Always; the message says what was done.
    """
    if not ids:
        raise RunInterrupted("Interrupted before anything was submitted.")
    by_hand = f"To cancel them: scancel {' '.join(ids)}"
    if not _wants_to_cancel(ids):
        raise RunInterrupted(f"Interrupted. The jobs stay in the queue. {by_hand}")
    answer = ask("scancel", *ids, timeout=60)
    if not answer.ok:
        raise RunInterrupted(f"Interrupted. SLURM did not cancel the jobs: {answer.complaint}. {by_hand}")
    raise RunInterrupted(
        f"Interrupted. Cancelled: {', '.join(ids)}. What was finished is kept; the same command goes on with "
        "the rest."
    )


def _wants_to_cancel(ids: Sequence[str]) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    many = "the job" if len(ids) == 1 else "the jobs"
    sys.stderr.write(f"\nJobs in the queue: {', '.join(ids)}. ")
    sys.stderr.write(f"Cancel {many} or leave {'it' if len(ids) == 1 else 'them'} running? [c/L] ")
    sys.stderr.flush()
    try:
        return sys.stdin.readline().strip().lower() in ("c", "cancel")
    except KeyboardInterrupt:
        return False
