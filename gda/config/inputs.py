"""What a run reads besides its config: weights and data, and where it is kept."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from gda.config.baselines import TEACHERS
from gda.config.identity import Identity, identify, identify_test
from gda.config.loss_nodes import uses_teacher
from gda.config.signature import construct
from gda.config.stages import AUTO, encoder_run, needs_of, teacher_run, tested_run
from gda.config.weights import named_run, weights_file, weights_source
from gda.models.weights.checkpoints import file_hash


def identify_run(config: Mapping[str, Any]) -> Identity:
    """Returns a run's identity, with the identities of its inputs in the hash.

    Args:
        config: The resolved config, free of faults.
    """
    data = data_fingerprint(config)
    if not needs_of(config).trains:
        return identify_test(config, tested_facts(config), data)
    return identify(config, weights_identity(config), data, encoder_identity(config))


def run_path(config: Mapping[str, Any], identity: Identity) -> Path:
    """Returns the run folder, ``RUNS/STUDY/NAME-GROUP/seedK``."""
    return Path(config["runs"]).absolute() / str(config["study"]) / identity.name / f"seed{config['seed']}"


def run_title(config: Mapping[str, Any], identity: Identity, is_input: bool) -> str:
    """Names a run for the display: what it does, where it is another's input or a test."""
    needs = needs_of(config)
    if is_input and config["study"] == TEACHERS:
        what = f"{needs.makes} {config['student']['name']}"
    else:
        what = identity.label if needs.trains else f"test of {identity.label}"
    return f"{what} seed {config['seed']}"


def facts_of(config: Mapping[str, Any], identity: Identity) -> dict[str, Any]:
    """Returns what a run is in plain words, for ``run.json`` and a sweep's plan."""
    facts = _method_facts(config) if needs_of(config).trains else dict(tested_facts(config))
    for key in ("state", "folder", "group", "twin_group", "vanilla_group", "label"):
        facts.pop(key, None)
    return {
        "group": identity.group,
        "seed": config["seed"],
        "label": identity.label,
        "twin_group": identity.twin_group,
        "vanilla_group": identity.vanilla_group,
        **facts,
        "dataset": config["dataset"]["name"],
        "task": config["task"]["name"],
    }


def tested_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is known of the run that a test is about.

    Args:
        config: A test's resolved config, free of faults.

    Returns:
        ``group``, ``twin_group``, ``vanilla_group``, ``label``, what :func:`facts_of` says of the method,
        and ``state``: which state of the run is tested.
    """
    encoder = config["encoder"]
    state = f"{encoder['checkpoint_select']}:{encoder['weights']}"
    if encoder["checkpoint"] == AUTO:
        tested = tested_run(config)
        identity = identify_run(tested)
        return {**_of_run(facts_of(tested, identity)), "state": state}
    folder = named_run(config)
    if folder is not None:
        return {**_of_run(folder.description()), "state": state}
    source, path = weights_source(config, "encoder"), weights_file(config, "encoder")
    assert source is not None
    assert path is not None
    name, said = config["student"]["name"], Path(source.text).stem  # where it was fetched to says nothing
    return {
        **_of_run({"student": name, "pair": name, "recipe": "weights", "label": f"weights {said}"}),
        "group": file_identity(path, encoder["weights"]),
        "folder": "weights",  # one file is one test, whatever it is called
        "state": "file",
    }


_TESTED = (
    "group", "twin_group", "vanilla_group", "label", "distiller", "alignment", "ground_truth", "recipe",
    "teacher", "student", "pair",
)  # fmt: skip


def _of_run(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: facts.get(key) for key in _TESTED}


def _method_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    teacher, student = config["teacher"]["name"], config["student"]["name"]
    guided = teacher if teacher and uses_teacher(config) else None
    return {
        "distiller": config["distiller"]["name"],
        "alignment": config["alignment"]["name"],
        "ground_truth": config["ground_truth"]["name"],
        "recipe": config["recipe"]["name"],
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
    if teacher["checkpoint"] == AUTO:
        group = identify_run(teacher_run(config)).group
        return f"run:{group}:seed{teacher['seed']}:{teacher['checkpoint_select']}"
    if teacher["checkpoint"] is None:
        return "pretrained"
    path = weights_file(config)
    assert path is not None
    return file_identity(path, teacher["weights"])


def encoder_identity(config: Mapping[str, Any]) -> str | None:
    """Identifies the weights that the student starts with; null where it starts from none.

    Args:
        config: The resolved config, free of faults.
    """
    encoder = config["encoder"]
    if not needs_of(config).encoder:
        return None
    if encoder["checkpoint"] == AUTO:
        group = identify_run(encoder_run(config)).group
        seed = "own" if encoder["seed"] is None else encoder["seed"]
        return f"run:{group}:seed{seed}:{encoder['checkpoint_select']}"
    path = weights_file(config, "encoder")
    assert path is not None
    return file_identity(path, encoder["weights"])


def file_identity(path: Path, weights: str) -> str:
    """Identifies weights in a file by its hash, and by which of them are taken."""
    which = "" if weights == "raw" else f":{weights}"
    return f"sha256:{_hash_of(path, path.stat().st_mtime_ns, path.stat().st_size)}{which}"


def data_fingerprint(config: Mapping[str, Any]) -> str | None:
    """Identifies data that the config does not determine; null where the name says it all."""
    source = construct(config["dataset"])
    fingerprint = getattr(source, "fingerprint", None)
    return None if fingerprint is None else str(fingerprint())


@lru_cache
def _hash_of(path: Path, changed: int, size: int) -> str:
    return file_hash(path)
