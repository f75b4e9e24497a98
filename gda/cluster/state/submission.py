"""What a sweep has handed to SLURM: which job makes which runs.

``STUDY/sweeps/<sweep id>/submission.json``, written by the launcher once the jobs are in the queue. It
is what tells a run that waits from a run that nobody has asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gda.cluster.json_record import Unreadable, read_record, text_of
from gda.tracking.atomic import write_json_atomic

FORMAT = 1
FILE = "submission.json"


@dataclass(frozen=True)
class SubmittedJob:
    """One job of a sweep.

    Attributes:
        job: SLURM's id of the job, or of one task of a job array: ``123`` or ``123_4``.
        file: Its frozen job, from the sweep folder: ``jobs/0.json``.
        runs: The absolute run folders that it makes, in their order.
        log: Absolute path of the file that holds its output (of the first process).
    """

    job: str
    file: str
    runs: tuple[str, ...]
    log: str


@dataclass(frozen=True)
class Submission:
    """The jobs of one sweep.

    Attributes:
        submitted: When, in ISO format.
        jobs: In the order of their submission.
        sweep: Name of the sweep folder.
        cluster: What runs them.
    """

    submitted: str
    jobs: tuple[SubmittedJob, ...]
    sweep: str = ""
    cluster: str = "slurm"


def write_submission(sweep: Path, submission: Submission) -> Path:
    """Writes the submission of a sweep, whole or not at all.

    Args:
        sweep: The sweep folder, ``STUDY/sweeps/<sweep id>``; its name is the submission's.
        submission: What was submitted.

    Returns:
        The file.

    Raises:
        OSError: The file can't be written.
    """
    path = sweep / FILE
    jobs = [
        {"job": job.job, "file": job.file, "runs": list(job.runs), "log": job.log} for job in submission.jobs
    ]
    record = {
        "format": FORMAT,
        "cluster": submission.cluster,
        "submitted": submission.submitted,
        "jobs": jobs,
    }
    write_json_atomic(path, record)
    return path


def read_submission(sweep: Path) -> Submission | None:
    """Reads the submission of a sweep.

    Args:
        sweep: The sweep folder.

    Returns:
        The submission; None where the sweep was not submitted.

    Raises:
        Unreadable: The file is damaged, or of a version that this code does not know.
    """
    record = read_record(sweep / FILE)
    if record is None:
        return None
    if record.get("format") != FORMAT:
        raise Unreadable(f"{FILE} has format {record.get('format')!r}; this version reads {FORMAT}")
    jobs = record.get("jobs")
    if not isinstance(jobs, list):
        raise Unreadable(f"{FILE} has no list of jobs")
    return Submission(
        submitted=text_of(record.get("submitted")) or "",
        jobs=tuple(_job(job) for job in jobs),
        sweep=sweep.name,
        cluster=text_of(record.get("cluster")) or "slurm",
    )


def submissions_of(study: Path) -> list[Submission]:
    """Returns the submissions of a study, oldest first, without those that can't be read.

    Args:
        study: The study's folder, ``RUNS/STUDY``.
    """
    found = []
    for path in sweeps_of(study):
        try:
            submission = read_submission(path)
        except Unreadable:
            continue
        if submission is not None:
            found.append(submission)
    return found


def sweeps_of(study: Path) -> list[Path]:
    """Returns the sweep folders of a study, oldest first: their names are times."""
    try:
        return sorted((path for path in (study / "sweeps").iterdir() if path.is_dir()), key=_age)
    except OSError:
        return []


def _age(sweep: Path) -> tuple[str, int]:
    """Orders ``<time>_2`` before ``<time>_10``."""
    day, _, rest = sweep.name.partition("_")
    time, _, number = rest.partition("_")
    return f"{day}_{time}", int(number) if number.isdecimal() else 0


def _job(job: Any) -> SubmittedJob:
    runs = job.get("runs") if isinstance(job, Mapping) else None
    if not isinstance(runs, list) or text_of(job.get("job")) is None:
        raise Unreadable(f"{FILE} lists a job without its id or its runs")
    return SubmittedJob(
        job=job["job"],
        file=text_of(job.get("file")) or "",
        runs=tuple(str(run) for run in runs),
        log=text_of(job.get("log")) or "",
    )
