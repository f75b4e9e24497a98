"""How a study stands: the state of every run that it holds, plans or waits for."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from gda.cluster.json_record import Unreadable, read_record, text_of, whole_of
from gda.cluster.state.cell_state import Verdict, judge
from gda.cluster.state.eta import estimated
from gda.cluster.state.job_of_run import JobsOfRuns
from gda.cluster.state.job_record import Job
from gda.cluster.state.planned import Planned, read_planned, run_key
from gda.cluster.state.records import GOES_ON, CellState, StudyState
from gda.cluster.state.run_evidence import RunEvidence, read_evidence

__all__ = ["CellState", "StudyState", "studies_in", "study_state", "unfinished_jobs"]


def study_state(study: Path, timeout: float = 10) -> StudyState:
    """Finds out how a study stands, from its files and from at most one call of squeue and one of sacct.

    Nothing that a kill has left behind makes it fail.

    Args:
        study: The study's folder, ``RUNS/STUDY``.
        timeout: Seconds that each call of SLURM may take.
    """
    study = study.resolve()
    planned, jobs = read_planned(study), JobsOfRuns(study)
    cells = {run_key(study / name): read_evidence(study / name) for name in planned.cells}
    named = cells.keys() | planned.inputs.keys()
    others = {
        key: read_evidence(folder) for folder in _runs_of(study) if (key := run_key(folder)) not in named
    }
    inputs = {}
    if any(run.state != "done" for run in cells.values()):
        inputs = {key: read_evidence(_here(study, entry.folder)) for key, entry in planned.inputs.items()}
    every = inputs | cells | others  # inputs first: a cell may have failed by them
    unfinished = {key: run for key, run in every.items() if run.state != "done"}
    if any(key not in cells and not jobs.knows(run.folder) for key, run in unfinished.items()):
        jobs.add_beside(study)
    queue = jobs.ask(unfinished.values(), timeout)
    # Disk after queue: a run that has ended since is then seen as ended, not as one without a job.
    every |= {key: read_evidence(run.folder) for key, run in unfinished.items()}
    states: dict[str, CellState] = {}

    def has_failed(folder: Path) -> bool:
        before = states.get(run_key(folder))
        return (before.state if before else read_evidence(folder).state) in ("failed", "blocked")

    for key, run in every.items():
        job = None if run.state == "done" else jobs.of(run, queue, has_failed)
        states[key] = _described(run, job, judge(run, job), key not in others)
    states, left = estimated(_named(states, study, planned))
    return StudyState(
        folder=study,
        cells=tuple(states[key] for key in (*cells, *others)),
        inputs=tuple(states[key] for key in inputs if states[key].state != "done"),
        queue_fault=queue.fault,
        faults=(*planned.faults, *jobs.faults),
        seconds_left=left,
    )


def unfinished_jobs(*studies: Path, timeout: float = 10) -> dict[Path, str]:
    """Returns which runs have a job that waits for them, makes them, or comes back to them.

    A run that its job has given up (it failed, and the job makes other runs) is not among them, nor is
    one whose job never starts because a run that it builds on has failed.

    Args:
        studies: Folders of studies. The jobs of their sweeps may make runs of other studies, too.
        timeout: Seconds that each call of SLURM may take.

    Returns:
        The job's id by run folder, as it was submitted; empty where SLURM can't be asked.
    """
    jobs = JobsOfRuns(*studies)
    runs = {folder: read_evidence(folder) for folder in jobs.folders}
    unfinished = {folder: run for folder, run in runs.items() if run.state != "done"}
    queue = jobs.ask(unfinished.values(), timeout)
    found = {}
    for folder in unfinished:
        run = read_evidence(folder)
        job = jobs.of(run, queue, lambda need: False)
        if job and job.known and job.known.alive and judge(run, job).state in (*GOES_ON, "lost"):
            found[folder] = job.submitted.job
    return found


def studies_in(runs: Path) -> list[str]:
    """Returns the names of the studies in a folder: what holds runs or sweep plans.

    Args:
        runs: The folder that holds all studies; it need not exist.
    """
    try:
        folders = [path for path in runs.iterdir() if path.is_dir()]
    except OSError:
        return []
    patterns = ("*/seed*/run.json", "sweeps/*/plan.json")
    return sorted(path.name for path in folders if any(any(path.glob(pattern)) for pattern in patterns))


def _runs_of(study: Path) -> list[Path]:
    """Returns the run folders of a study in which something was ever begun."""
    found = []
    for folder in sorted(study.glob("*/seed*")):
        if any((folder / name).exists() for name in ("status.json", "run.json", "run.lock")):
            found.append(folder)
    return found


def _here(study: Path, folder: Path) -> Path:
    """Returns where a run of another study lies, from a folder as another machine may have named it."""
    return folder if folder.exists() else study.parent / run_key(folder)


def _described(run: RunEvidence, job: Job | None, verdict: Verdict, planned: bool) -> CellState:
    return CellState(
        folder=run.folder,
        title="",
        state=verdict.state,
        detail=verdict.detail,
        advice=verdict.advice,
        error=verdict.error,
        planned=planned,
        job=job.submitted.job if job else None,
        log=(job.log or None) if job else None,
        in_job_log=verdict.in_job_log,
        epoch=run.epoch,
        epochs=run.epochs,
        step=run.step,
        updated=run.updated or None,
        attempts=run.attempts,
        began=(run.attempt.began or None) if run.attempt else None,
    )


def _named(states: Mapping[str, CellState], study: Path, planned: Planned) -> dict[str, CellState]:
    """Adds what the plans know of runs: titles, and how long cells train that have not begun."""
    cells = {run_key(study / name): cell for name, cell in planned.cells.items()}
    found = {}
    for key, state in states.items():
        if key in cells:
            found[key] = replace(state, title=cells[key].title, epochs=state.epochs or cells[key].epochs)
        elif key in planned.inputs:
            found[key] = replace(state, title=planned.inputs[key].title)
        else:
            found[key] = replace(state, title=_title(state.folder))
    return found


def _title(folder: Path) -> str:
    """Names a run that no plan names, by method and seed where its description tells them."""
    try:
        facts = read_record(folder / "run.json") or {}
    except Unreadable:
        facts = {}
    label, seed = text_of(facts.get("label")), whole_of(facts.get("seed"))
    known = label and seed is not None
    return f"{label} seed {seed}" if known else "/".join(folder.parts[-2:])
