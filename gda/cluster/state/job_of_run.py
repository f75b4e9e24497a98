"""Which SLURM job makes a run, of all the jobs that ever had to."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from gda.cluster.json_record import Unreadable, read_record
from gda.cluster.state.job_record import Job
from gda.cluster.state.planned import run_key
from gda.cluster.state.queue import Queue, ask_queue
from gda.cluster.state.run_evidence import RunEvidence
from gda.cluster.state.submission import FILE, Submission, SubmittedJob, read_submission, sweeps_of


@dataclass(frozen=True)
class _Asked:
    """One request for a run: the job, and the sweep that submitted it."""

    job: SubmittedJob
    submission: Submission
    sweep: Path


class JobsOfRuns:
    """The jobs of studies, by the runs that they make.

    Args:
        studies: The studies' folders, ``RUNS/STUDY``.

    Attributes:
        folders: Every run folder that was submitted, as it was submitted.
        faults: Submissions that can't be used, and why.
    """

    def __init__(self, *studies: Path) -> None:
        self.folders: list[Path] = []
        self.faults: list[str] = []
        self._asked: dict[str, list[_Asked]] = {}
        for study in studies:
            self._add(study)

    def add_beside(self, study: Path) -> None:
        """Adds the jobs of all studies beside one: they may have asked for the same teachers."""
        try:
            beside = sorted(path for path in study.resolve().parent.iterdir() if path.is_dir())
        except OSError:
            return
        faults = list(self.faults)  # what is wrong in other studies, their own status tells
        for other in beside:
            if other != study.resolve():
                self._add(other)
        self.faults = faults

    def knows(self, run: Path) -> bool:
        """Says whether a run was ever submitted."""
        return run_key(run) in self._asked

    def ask(self, runs: Iterable[RunEvidence], timeout: float) -> Queue:
        """Asks SLURM for all jobs that have or had to make these runs."""
        ids = {asked.job.job for run in runs for asked in self._of(run)}
        return ask_queue(ids, timeout)

    def of(self, run: RunEvidence, queue: Queue, has_failed: Callable[[Path], bool]) -> Job | None:
        """Returns the job that has to make a run: the newest, unless an older one is still alive.

        Args:
            run: What the run's folder says.
            queue: What SLURM says.
            has_failed: Tells whether a run, given by its folder, has failed.
        """
        candidates = self._of(run)
        if not candidates:
            return None
        alive = [asked for asked in candidates if _is_alive(asked, queue)]
        chosen = (alive or candidates)[-1]
        return Job(
            submitted=chosen.job,
            log=_log(chosen, run.folder),
            known=queue.states.get(chosen.job.job),
            asked=queue.fault is None,
            since=chosen.submission.submitted,
            needs_failed=lambda: any(has_failed(folder) for folder in _needs(chosen, run.folder)),
        )

    def _add(self, study: Path) -> None:
        for sweep in sweeps_of(study):
            try:
                submission = read_submission(sweep)
            except Unreadable as reason:
                self.faults.append(f"sweeps/{sweep.name}/{FILE}: {reason}")
                continue
            if submission is None:
                continue
            for job in submission.jobs if submission.cluster == "slurm" else ():
                for run in job.runs:
                    if run_key(run) not in self._asked:
                        self.folders.append(Path(run))
                    self._asked.setdefault(run_key(run), []).append(_Asked(job, submission, sweep))

    def _of(self, run: RunEvidence) -> list[_Asked]:
        """Returns the requests for a run, oldest first."""
        asked = self._asked.get(run_key(run.folder), [])
        if asked or run.attempt is None or run.attempt.slurm_job is None:
            return sorted(asked, key=lambda each: each.sweep.name)
        # Started by a person's own job script: the run itself has written down the job.
        own = SubmittedJob(run.attempt.slurm_job, "", (str(run.folder),), "")
        return [_Asked(own, Submission(run.attempt.began, (own,)), Path())]


def _is_alive(asked: _Asked, queue: Queue) -> bool:
    state = queue.states.get(asked.job.job)
    return state is not None and state.alive and not state.stuck


def _log(asked: _Asked, folder: Path) -> str:
    """Returns the file with a run's output: runs side by side have their own (processes/child_run.py)."""
    if len(asked.job.runs) > 1:
        own = asked.sweep / "logs" / f"{folder.parent.name}_{folder.name}.log"
        if own.exists():
            return str(own)
    return asked.job.log


def _needs(asked: _Asked, folder: Path) -> list[Path]:
    """Returns the folders of the runs that a run builds on, from its frozen job."""
    if not asked.job.file:
        return []
    try:
        job = read_record(asked.sweep / asked.job.file) or {}
    except Unreadable:
        return []
    runs = job.get("runs")
    for run in runs if isinstance(runs, list) else ():
        if isinstance(run, dict) and run_key(str(run.get("folder"))) == run_key(folder):
            needs = run.get("needs")
            return [Path(need) for need in needs if isinstance(need, str)] if isinstance(needs, list) else []
    return []
