"""What of a plan somebody makes already, so that nothing is submitted twice."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gda.cluster.plan import Plan, PlannedRun
from gda.cluster.slurm.command import ask
from gda.cluster.state.cell_state import judge
from gda.cluster.state.job_of_run import JobsOfRuns
from gda.cluster.state.records import GOES_ON
from gda.cluster.state.run_evidence import read_evidence
from gda.cluster.state.submission import submissions_of, sweeps_of
from gda.errors import UserError


@dataclass(frozen=True)
class UnderWay:
    """Unfinished runs that have a job, or that a process makes.

    Attributes:
        jobs: The job's id, by run folder.
        elsewhere: Folders of runs that a process makes outside the queue, such as a sweep in a terminal.
        stuck: Ids of jobs that never start, because a run that they wait for has failed.
    """

    jobs: dict[Path, str] = field(default_factory=dict)
    elsewhere: set[Path] = field(default_factory=set)
    stuck: set[str] = field(default_factory=set)


def under_way(runs: Sequence[PlannedRun]) -> UnderWay:
    """Finds out which of these runs are being made, or wait in the queue.

    The jobs of all studies are looked through: a teacher may have been asked for by another one.

    Args:
        runs: Unfinished runs.

    Raises:
        UserError: SLURM can't be asked.
    """
    found = UnderWay()
    roots = dict.fromkeys(run.folder.parents[2] for run in runs)
    jobs = JobsOfRuns(*(study for root in roots if root.is_dir() for study in root.iterdir()))
    evidence = {run.folder: read_evidence(run.folder) for run in runs}
    queue = jobs.ask(evidence.values(), timeout=30)
    if queue.fault is not None:
        raise UserError(
            f"SLURM can't be asked what is in its queue ({queue.fault}). Nothing was submitted, because it "
            "might be there already. Issue the same command again when squeue answers."
        )
    for run in runs:
        job = jobs.of(evidence[run.folder], queue, lambda folder: False)
        state = judge(evidence[run.folder], job).state
        if job is None or job.known is None or not job.known.alive:
            if state == "running":
                found.elsewhere.add(run.folder)
        elif job.known.stuck:
            found.stuck.add(job.submitted.job)
        elif state in (*GOES_ON, "lost"):
            found.jobs[run.folder] = job.submitted.job
    return found


def orphans_of(plan: Plan) -> list[str]:
    """Finds jobs of the plan's studies that no submission names: a command was killed just then.

    Such a job may lack the file that says what it has to do.

    Returns:
        Ids of jobs and of whole arrays, for scancel.
    """
    answer = ask("squeue", "-h", "-u", str(os.getuid()), "-o", "%F|%o", timeout=30)
    logs: dict[Path, set[str]] = {}
    for study in plan.studies:
        known = {job.job.partition("_")[0] for each in submissions_of(study) for job in each.jobs}
        logs |= {(sweep / "logs").resolve(): known for sweep in sweeps_of(study)}
    orphans = []
    for line in answer.lines:
        job, _, script = line.partition("|")
        folder = Path(script.strip()).parent.resolve()
        if folder in logs and job not in logs[folder]:
            orphans.append(job)
    return list(dict.fromkeys(orphans))
