"""Hands job arrays to SLURM, through submitit: frozen, in order, and written down one by one."""

import contextlib
import io
import logging
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gda.cluster.frozen_job import write_job
from gda.cluster.slurm.command import ask, submitting
from gda.cluster.slurm.job_arrays import JobArray
from gda.cluster.slurm.sbatch_check import refusal
from gda.cluster.state.submission import Submission, SubmittedJob, write_submission
from gda.config.ranks import ranks_of
from gda.errors import UserError

logger = logging.getLogger("gda")

Executors = Callable[[Path, Mapping[str, Any]], Any]
"""Makes submitit's executor for a folder and the parameters of a job, under ``hydra.launcher``'s names."""

LOGS = "logs"
"""Folder of a sweep that holds submitit's files and the output of the jobs."""


def job_parameters(launcher: Mapping[str, Any], cluster: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what every job of a sweep asks for.

    Args:
        launcher: The node ``hydra.launcher``.
        cluster: The node ``cluster``.
    """
    flags = {
        "requeue": True,
        "kill_on_invalid_dep": "yes",  # else a job whose teacher has failed waits for ever
        **_spelled(cluster["sbatch"] or {}),
        **_spelled(launcher["additional_parameters"] or {}),
    }
    if flags.get("no_requeue"):
        del flags["requeue"]
    srun = ["--kill-on-bad-exit=1", "--open-mode=append"]
    if launcher["cpus_per_task"] is not None:
        srun.append(f"--cpus-per-task={launcher['cpus_per_task']}")  # srun no longer takes it from sbatch
    # The code that has been checked, also where it is not installed but lies beside launch.py.
    path = f"export PYTHONPATH={shlex.quote(str(Path(sys.path[0]).absolute()))}${{PYTHONPATH:+:$PYTHONPATH}}"
    return {
        **launcher,
        "gpus_per_node": launcher["gpus_per_node"] or None,
        "setup": [path, *(launcher["setup"] or [])],
        "srun_args": [*srun, *launcher["srun_args"]],
        "additional_parameters": {
            name: value for name, value in flags.items() if value is not None and value is not False
        },
    }


def script_of(executors: Executors, parameters: Mapping[str, Any]) -> str:
    """Returns the batch script of a job that asks for this; it does nothing.

    Raises:
        UserError: Submitit does not take a parameter.
    """
    try:
        executor = executors(Path(LOGS), {**parameters, "name": "check"})
        # Submitit has no public way to the script that it would submit.
        return str(executor._executor._make_submission_file_text("true", "check"))
    except (NameError, AssertionError, TypeError, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from error


def chosen_flags(parameters: Mapping[str, Any]) -> list[str]:
    """Returns the flags of sbatch that the config sets."""
    flags = {**parameters, **parameters["additional_parameters"]}
    return [name for name, value in flags.items() if value is not None]


@dataclass
class Handover:
    """The submission of one sweep, which may touch several studies.

    Args:
        sweeps: The sweep folder of each study.
        parameters: What every job asks for (:func:`job_parameters`).
        cluster: The node ``cluster``.
        executors: Makes submitit's executor.
        job: Makes of a frozen job's file what submitit is to call on the cluster.
        in_queue: Ids of the jobs that make runs which were in the queue before, by run folder.

    Attributes:
        jobs: The jobs that were submitted, in order, by study.
    """

    sweeps: Mapping[Path, Path]
    parameters: Mapping[str, Any]
    cluster: Mapping[str, Any]
    executors: Executors
    job: Callable[[Path], Any]
    in_queue: Mapping[Path, str]
    jobs: dict[Path, list[SubmittedJob]] = field(default_factory=dict)

    def submit(self, array: JobArray) -> None:
        """Submits the jobs of one array, and writes them down.

        Ctrl-C waits meanwhile: a job that nobody has written down would be lost.

        Raises:
            UserError: SLURM refuses them.
            KeyboardInterrupt: Ctrl-C was pressed; the jobs are submitted and written down.
        """
        sweep = self.sweeps[array.study]
        files = self._write(array, sweep)
        folder = self.parameters["submitit_folder"]
        parameters = {**self.parameters, **self._described(array, sweep)}
        executor = self.executors(Path(folder) if folder else sweep / LOGS, parameters)
        with undisturbed(), submitting(chosen_flags(parameters)):
            try:
                with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it also raises
                    submitted = executor.submit_array([self.job(file) for file in files])
            except RuntimeError as error:  # the base of submitit's own
                fault = refusal(str(error).splitlines())
                raise UserError(str(fault)) from error
            for job, file, runs in zip(submitted, files, array.jobs, strict=True):
                record = SubmittedJob(
                    job=str(job.job_id),
                    file=str(file.relative_to(sweep.absolute())),
                    runs=tuple(str(run.folder) for run in runs),
                    log=str(job.paths.stdout),
                )
                self.jobs.setdefault(array.study, []).append(record)
            now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            write_submission(sweep, Submission(now, tuple(self.jobs[array.study])))

    @property
    def submitted(self) -> list[SubmittedJob]:
        """All jobs that were submitted."""
        return [job for jobs in self.jobs.values() for job in jobs]

    @property
    def log_folders(self) -> list[Path]:
        """Folders that hold the output of the jobs."""
        return list(dict.fromkeys(Path(job.log).parent for job in self.submitted))

    @property
    def ids(self) -> list[str]:
        """What to hand to scancel: jobs and whole arrays."""
        return list(dict.fromkeys(job.job.partition("_")[0] for job in self.submitted))

    def cancel(self) -> bool:
        """Cancels what was submitted; says whether SLURM has taken that."""
        return not self.ids or ask("scancel", *self.ids, timeout=60).ok

    def _write(self, array: JobArray, sweep: Path) -> list[Path]:
        first = len(self.jobs.get(array.study, ()))
        return [
            write_job(
                sweep / "jobs" / f"{number}.json",
                runs,
                sweep=f"{array.study.name}/{sweep.name}",
                side_by_side=self.cluster["side_by_side"],
                ranks=ranks_of(runs[0].config),
                max_requeues=self.cluster["max_requeues"],
                allow_changed_code=self.cluster["allow_changed_code"],
            )
            for number, runs in enumerate(array.jobs, first)
        ]

    def _described(self, array: JobArray, sweep: Path) -> dict[str, Any]:
        """Returns the parameters in which the arrays of a sweep differ."""
        makers = {run: job.job for jobs in self.jobs.values() for job in jobs for run in job.runs}
        before = [makers.get(str(folder)) or self.in_queue[folder] for folder in array.needs]
        flags = dict(self.parameters["additional_parameters"])
        if before:
            flags["dependency"] = f"afterok:{':'.join(dict.fromkeys(before))}"
        return {
            "name": job_name(self.parameters["name"] or array.study.name, array),
            "comment": self.parameters["comment"] or f"gda {array.study.name}/{sweep.name}",
            "additional_parameters": flags,
        }


def job_name(start: str, array: JobArray) -> str:
    """Names jobs by their study and what they make, without blanks: ``main_table-kd+gda_seed1``."""
    runs = array.runs
    made = f"{len(runs)}_inputs" if array.makes_inputs else f"{len(runs)}_cells"
    if len(runs) == 1:
        run = runs[0]
        made = run.title if run.needed else f"{run.facts['label']}_seed{run.config['seed']}"
    return re.sub(r"[^\w.=+-]+", "_", f"{start}-{made}")[:100]


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Lets Ctrl-C wait until the end of the block, and does not let it reach programs that are started.

    Raises:
        KeyboardInterrupt: At the end, where Ctrl-C was pressed.
    """
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def _spelled(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Spells flags of sbatch as submitit does, so that the same flag is not set twice."""
    return {str(name).lstrip("-").replace("-", "_"): value for name, value in flags.items()}
