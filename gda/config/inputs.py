"""What a run reads besides its config: the teacher's weights and the data, and where it is kept."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from gda.config.baselines import teacher_run
from gda.config.identity import Identity, identify
from gda.config.loss_nodes import uses_teacher
from gda.config.signature import construct
from gda.config.weights import weights_file
from gda.models.weights.checkpoints import file_hash


def identify_run(config: Mapping[str, Any]) -> Identity:
    """Returns a run's identity, with the identities of its inputs in the hash.

    Args:
        config: The resolved config, free of faults.
    """
    return identify(config, weights_identity(config), data_fingerprint(config))


def run_path(config: Mapping[str, Any], identity: Identity) -> Path:
    """Returns the run folder, ``RUNS/STUDY/NAME-GROUP/seedK``."""
    return Path(config["runs"]).absolute() / str(config["study"]) / identity.name / f"seed{config['seed']}"


def facts_of(config: Mapping[str, Any], identity: Identity) -> dict[str, Any]:
    """Returns what a run is in plain words, for ``run.json`` and a sweep's plan."""
    teacher, student = config["teacher"]["name"], config["student"]["name"]
    guided = teacher if teacher and uses_teacher(config) else None
    return {
        "group": identity.group,
        "seed": config["seed"],
        "label": identity.label,
        "twin_group": identity.twin_group,
        "vanilla_group": identity.vanilla_group,
        "distiller": config["distiller"]["name"],
        "alignment": config["alignment"]["name"],
        "ground_truth": config["ground_truth"]["name"],
        "dataset": config["dataset"]["name"],
        "recipe": config["recipe"]["name"],
        "task": config["task"]["name"],
        "teacher": teacher,
        "student": student,
        "pair": f"{guided} -> {student}" if guided else student,
    }


def weights_identity(config: Mapping[str, Any], also_unused: bool = False) -> str | None:
    """Identifies the teacher's weights by what is in them, not by where they lie.

    Weights that are not at hand are fetched.

    Args:
        config: The resolved config, free of faults.
        also_unused: Whether to identify a teacher that only measures fidelity, too.
    """
    teacher = config["teacher"]
    if teacher["name"] is None or not (also_unused or uses_teacher(config)):
        return None
    if teacher["checkpoint"] == "auto":
        group = identify_run(teacher_run(config)).group
        return f"run:{group}:seed{teacher['seed']}:{teacher['checkpoint_select']}"
    if teacher["checkpoint"] is None:
        return "pretrained"
    path = weights_file(config)
    assert path is not None
    which = "" if teacher["weights"] == "raw" else f":{teacher['weights']}"
    return f"sha256:{_hash_of(path, path.stat().st_mtime_ns, path.stat().st_size)}{which}"


def data_fingerprint(config: Mapping[str, Any]) -> str | None:
    """Identifies data that the config does not determine; null where the name says it all."""
    source = construct(config["dataset"])
    fingerprint = getattr(source, "fingerprint", None)
    return None if fingerprint is None else str(fingerprint())


@lru_cache
def _hash_of(path: Path, changed: int, size: int) -> str:
    return file_hash(path)
