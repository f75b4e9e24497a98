"""What a job does: ``python -m gda.job FILE`` makes the runs of a frozen job.

``--only I`` makes one of them, as one of several processes side by side.
"""

import argparse
import contextlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from gda.cluster.failed_run import mark_failed
from gda.cluster.frozen_job import SWEEP_VARIABLE, FrozenJob, FrozenRun, read_job, require_same_code
from gda.errors import RunInterrupted, RunPreempted, UserError
from gda.ranks import StoppedByMain, is_main, rank_count
from gda.tracking.console import set_up_logging
from gda.tracking.run_folder import RunFolder, slurm_job_id


class SlurmJob:
    """A frozen job as submitit takes it: it can be pickled, and come back after a requeue.

    Args:
        file: The frozen job.
    """

    def __init__(self, file: Path | str) -> None:
        self.file = str(file)

    def __call__(self) -> None:
        """Makes the runs.

        Raises:
            SystemExit: At least one of them is not finished; SLURM then says FAILED.
        """
        code = run_job(Path(self.file))
        _ignore_signals()
        if code:
            raise SystemExit(code)

    def checkpoint(self) -> Any:
        """Returns what submitit is to run when the job comes back: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _ignore_signals() -> None:
    """Lets a job that is over end in peace.

    Python drops its handlers some time before the process ends: a signal then would kill it, and SLURM
    would call the job failed, so that what waits for it never starts.
    """
    with contextlib.suppress(ValueError):  # not the main thread
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)


def run_job(file: Path, only: int | None = None) -> int:
    """Makes the runs of a frozen job, one after the other or side by side.

    A run that fails does not keep the others from being made.

    Args:
        file: The frozen job.
        only: Number of the one run to make, from 0; None makes all.

    Returns:
        The exit code: 0 when all of them are finished, 130 or 143 after a signal, else 1.
    """
    set_up_logging(quiet=not _is_first_process())
    runs: tuple[FrozenRun, ...] = ()
    try:
        job = read_job(file)
        runs = job.runs if only is None else (job.runs[only],)
        require_same_code(job)
    except UserError as error:
        if _is_first_process():
            _say(error)
            for run in runs:
                mark_failed(run.folder, error)
        return UserError.exit_code
    os.environ[SWEEP_VARIABLE] = job.sweep
    if only is None and job.side_by_side > 1 and len(runs) > 1:
        return _run_side_by_side(job)
    return _run_here(job, runs, is_child=only is not None)


def _run_side_by_side(job: FrozenJob) -> int:
    from gda.cluster.processes.side_by_side import run_side_by_side

    end = run_side_by_side([job], job.side_by_side)
    for line in end.failures():
        print(line, flush=True)
    from_slurm = end.signal in (signal.SIGTERM, signal.SIGUSR2) and slurm_job_id() is not None
    if from_slurm and not end.all_done:
        from gda.cluster.slurm.job import give_node_back

        return give_node_back(job, end.signal or 0)
    return end.exit_code


def _run_here(job: FrozenJob, runs: tuple[FrozenRun, ...], is_child: bool) -> int:
    """Makes runs in this process, together with the other ranks where there are some."""
    from gda.cluster.process_group import joined

    code = 0
    try:
        with joined(str(runs[0].config["trainer"]["device"])):
            for run in runs:
                code = _run_one(run) or code
                if code and rank_count() > 1:
                    return code  # the ranks may no longer be at the same point
    except RunPreempted as preempted:
        if is_main():
            _say(preempted)
        if is_child:  # who started it gives the node back
            return preempted.exit_code
        from gda.cluster.slurm.job import give_node_back

        return give_node_back(job, preempted.signal)
    except UserError as error:  # interrupted, or the other ranks can't be reached
        if is_main():
            _say(error)
        return error.exit_code
    return code


def _run_one(run: FrozenRun) -> int:
    """Makes one run; returns 1 when it fails.

    Raises:
        RunInterrupted: A signal stopped it.
    """
    from gda.app import finish, unwritable
    from gda.attempt import STARTUP

    STARTUP.mark("imports")
    before = RunFolder(run.folder).status()
    try:
        made = finish(run.config, is_input=run.is_input, needed=run.needed)
        if made.folder != run.folder:
            raise UserError(
                f"{run.title} is another run now, and finished in {made.folder}: weights or data that it "
                "reads, or the code, have changed since it was submitted. Issue the command again."
            )
    except RunInterrupted:
        raise
    except StoppedByMain:  # rank 0 says why
        return UserError.exit_code
    except Exception as error:
        told = UserError(unwritable(error)) if isinstance(error, OSError) else error
        if isinstance(told, UserError):
            _say(told)
        else:
            traceback.print_exc()
        if is_main():
            mark_failed(run.folder, told, before)
        return UserError.exit_code
    return 0


def _is_first_process() -> bool:
    """Says whether this is rank 0, before the ranks have found each other."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0


def _say(error: UserError) -> None:
    sys.stdout.flush()  # both go to one file
    sys.stderr.write(f"{error}\n")
    sys.stderr.flush()


def main() -> int:
    """Makes the runs of the frozen job that the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m gda.job", description="Makes the runs of a frozen job.")
    parser.add_argument("file", type=Path, help="STUDY/sweeps/<sweep id>/jobs/<n>.json")
    parser.add_argument("--only", type=int, metavar="I", help="make this one of its runs, from 0")
    arguments = parser.parse_args()
    from gda.cluster.processes.tree import end_with_parent
    from gda.training.interruption import interruptible

    try:
        with interruptible():
            end_with_parent()
            return run_job(arguments.file, arguments.only)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. What was finished is kept; the same command continues.\n")
        return RunInterrupted.exit_code


if __name__ == "__main__":
    sys.exit(main())
