"""Whether sbatch takes the jobs of a sweep, and what its refusals mean."""

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gda.cluster.slurm.command import ask, submitting
from gda.config.faults import Fault

# Flags of sbatch that have a key of their own, and those that the launcher needs for itself.
_KEYS = {
    "partition": "cluster.partition", "account": "cluster.account", "qos": "cluster.qos",
    "time": "cluster.timeout_min", "nodes": "cluster.nodes", "gpus_per_node": "cluster.gpus_per_node",
    "ntasks_per_node": "cluster.ranks_per_node", "cpus_per_task": "cluster.cpus_per_task",
    "mem": "cluster.mem_gb", "signal": "cluster.signal_delay_s", "job_name": "hydra.launcher.name",
    "comment": "hydra.launcher.comment",
}  # fmt: skip
_OWN = ("array", "dependency", "output", "error", "open_mode", "wrap", "test_only", "parsable", "wait")

# What sbatch says when it refuses a job, and the key that decides it: the first that fits.
_REFUSALS = {
    "partition name": "cluster.partition",
    "partition specified": "cluster.partition",
    "qos": "cluster.qos",
    "account": "cluster.account",
    "gres": "cluster.gpus_per_node",
    "time limit": "cluster.timeout_min",
    "memory": "cluster.mem_gb",
    "feature": "cluster.sbatch",
    "option": "cluster.sbatch",
}
_FOR_NOW = ("node configuration is not available", "nodes are busy", "down, drained", "reserved")

logger = logging.getLogger("gda")


def check_flags(sbatch: Mapping[str, Any] | None) -> list[Fault]:
    """Refuses flags in ``cluster.sbatch`` that are set elsewhere, or that the launcher needs for itself."""
    faults = []
    for name, value in (sbatch or {}).items():
        where, plain = f"cluster.sbatch.{name}", str(name).lstrip("-").replace("-", "_")
        if plain in _KEYS:
            fix = f"{_KEYS[plain]}={'MINUTES' if plain == 'time' else value}"
            faults.append(Fault(where, f"{_KEYS[plain]} is the key for this flag", fix))
        elif plain in _OWN:
            faults.append(Fault(where, "the launcher sets this flag itself", f"~{where}"))
    return faults


def check_programs() -> list[Fault]:
    """Checks that jobs can be submitted from this machine."""
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            what = f"there is no {program} on PATH: run this on a login node of the cluster"
            return [Fault("cluster", what, "cluster=local")]
    return []


def check_submission(script: str, chosen: Iterable[str]) -> list[Fault]:
    """Asks sbatch itself whether it would take a job; nothing is submitted.

    That no node would do may be so for now only, as when they are down: then there is a warning, and the
    submission itself will tell.

    Args:
        script: The job's batch script.
        chosen: Flags that the config sets.
    """
    with submitting(set(chosen)):
        answer = ask("sbatch", "--test-only", stdin=script, timeout=60)
    if answer.ok:
        return []
    fault = refusal(answer.errors)
    if any(words in fault.what.lower() for words in _FOR_NOW):
        logger.info("Warning: SLURM could not start such a job now. %s", fault)
        return []
    return [fault]


def refusal(said: Sequence[str]) -> Fault:
    """Puts sbatch's refusal into a fault that names the key which decides it."""
    lines = []
    for line in said:
        for prefix in ("sbatch: ", "error: ", "allocation failure: ", "Batch job submission failed: "):
            line = line.removeprefix(prefix)
        if line and not line.startswith("Try ") and line not in lines:
            lines.append(line)
    words = "; ".join(lines) or "it gave no reason"
    where = next((key for phrase, key in _REFUSALS.items() if phrase in words.lower()), "cluster")
    return Fault(where, f"sbatch refuses the job: {words}")
