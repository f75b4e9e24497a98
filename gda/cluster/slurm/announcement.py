"""Says what a sweep is going to submit, before it does, and where to look afterwards."""

import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gda.cluster.grid import estimate_in_words
from gda.cluster.plan import Plan, PlannedRun
from gda.cluster.slurm.in_queue import UnderWay
from gda.cluster.slurm.job_arrays import JobArray
from gda.cluster.state.eta import in_words
from gda.cluster.state.submission import SubmittedJob

logger = logging.getLogger("gda")


def announce_plan(plan: Plan, missing: Sequence[PlannedRun], known: UnderWay) -> None:
    """Says how a sweep stands, what it submits, and how long that takes.

    Args:
        plan: The sweep.
        missing: The runs that will be submitted.
        known: What is made already.
    """
    cells = {cell.folder for cell in plan.cells}
    counts = {
        "finished before": sum(cell.is_done() for cell in plan.cells),
        "in the queue": len(cells & known.jobs.keys()),
        "made outside the queue now": len(cells & known.elsewhere),
        "to run": len(cells.intersection(run.folder for run in missing)),
    }
    shown = [f"{count} {what}" for what, count in counts.items() if count or what == "to run"]
    logger.info("%d cell%s: %s", len(plan.cells), "s" * (len(plan.cells) != 1), ", ".join(shown))
    first = [run.title for run in missing if run.folder not in cells]
    if first:
        logger.info("made first, because cells build on it: %s", ", ".join(first))
    waits = {need for run in missing for need in run.needs if need in known.jobs}
    before = [f"{run.title} (job {known.jobs[run.folder]})" for run in plan.inputs if run.folder in waits]
    if before:
        logger.info("waited for, because it is in the queue already: %s", ", ".join(before))
    if missing:
        logger.info(estimate_in_words(missing) or "no past runs to estimate the time from")


def announce_jobs(arrays: Sequence[JobArray], parameters: Mapping[str, Any], side_by_side: int) -> None:
    """Says how many jobs a sweep submits, and what each of them asks for."""
    jobs = sum(len(array.jobs) for array in arrays)
    runs = sum(len(job) for array in arrays for job in array.jobs)
    packed = f" for {runs} runs, up to {side_by_side} side by side" if side_by_side > 1 else ""
    logger.info("%d job%s%s, each: %s", jobs, "s" * (jobs != 1), packed, resources(parameters))


def announce_submission(plan: Plan, jobs: Iterable[SubmittedJob], logs: Iterable[Path]) -> None:
    """Says which jobs were submitted, and where to look; the last line begins with ``Status:``."""
    logger.info("Submitted: %s", named_jobs(jobs))
    for folder in logs:
        logger.info("Logs: %s", _from_here(folder))
    announce_status(plan)


def announce_status(plan: Plan) -> None:
    """Says how to look at the studies of a sweep."""
    for study in plan.studies:
        elsewhere = (
            ""
            if study.parent == Path("runs").absolute()
            else f" --runs {shlex.quote(_from_here(study.parent))}"
        )
        logger.info("Status: python -m gda.status %s%s", shlex.quote(study.name), elsewhere)


def resources(parameters: Mapping[str, Any]) -> str:
    """Names what a job asks for: ``1 node, 4 CPUs, 1 GPU, at most 4 h, partition gpu``."""
    nodes, tasks = parameters["nodes"], parameters["tasks_per_node"]
    parts = [_many(nodes, "node")]
    if tasks > 1:
        parts.append(f"{tasks} processes a node")
    cpus = parameters["cpus_per_task"]
    if cpus:
        parts.append(_many(cpus, "CPU") + " a process" * (tasks > 1))
    if parameters["gpus_per_node"]:
        parts.append(_many(parameters["gpus_per_node"], "GPU") + " a node" * (nodes > 1))
    if parameters["mem_gb"]:
        parts.append(f"{parameters['mem_gb']:g} GB" + " a node" * (nodes > 1))
    parts.append(f"at most {in_words(60 * parameters['timeout_min'])} at a time")
    parts += [f"{key} {parameters[key]}" for key in ("partition", "account", "qos") if parameters[key]]
    return ", ".join(parts)


def named_jobs(jobs: Iterable[SubmittedJob]) -> str:
    """Names jobs in few words: ``101, 102_0 to 102_20``."""
    groups: dict[str, list[str]] = {}
    for job in jobs:
        groups.setdefault(job.job.partition("_")[0], []).append(job.job)
    return ", ".join(ids[0] if len(ids) == 1 else f"{ids[0]} to {ids[-1]}" for ids in groups.values())


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _from_here(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
