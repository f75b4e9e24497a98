"""What a run is, in tags that MLflow's search finds."""

from collections.abc import Mapping
from typing import Any

RUN_TAG = "gda.run"
"""Names what an MLflow run mirrors: a run folder, a sweep or a report. One MLflow run for each."""

SWEEP_TAG = "gda.sweep"
"""On the runs of a sweep, ``STUDY/<sweep id>``. The tag ``sweep`` says the same, also on their parent."""

PARENT_TAG = "mlflow.parentRunId"

FACTS = (
    "study",
    "sweep",
    "group",
    "seed",
    "distiller",
    "alignment",
    "ground_truth",
    "dataset",
    "recipe",
    "task",
    "teacher",
    "student",
    "pair",
    "label",
)
"""What ``run.json`` says under the same names."""

_LONGEST = 5000


def tags_of(facts: Mapping[str, Any], key: str) -> dict[str, str]:
    """Return the tags of a run.

    Args:
        facts: Its ``run.json``.
        key: Its name in MLflow, for `RUN_TAG`.
    """
    tags = {name: str(facts[name])[:_LONGEST] for name in FACTS if facts.get(name) is not None}
    if "sweep" in tags:
        tags[SWEEP_TAG] = tags["sweep"]
    job = _slurm_job(facts.get("slurm") or {})
    if job:
        tags["slurm.job"] = job
    commit = (facts.get("git") or {}).get("commit")
    if commit:
        tags["git.commit"] = tags["mlflow.source.git.commit"] = str(commit)
    return tags | {RUN_TAG: key}


def _slurm_job(variables: Mapping[str, str]) -> str | None:
    """Return a job's id as squeue and sacct write it: ``123``, or ``123_4`` for one of an array."""
    array, index = variables.get("SLURM_ARRAY_JOB_ID"), variables.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else variables.get("SLURM_JOB_ID")
