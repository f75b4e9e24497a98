"""The runs that a run builds on: its teacher, the encoder it starts from, the run that it tests.

A config describes its last stage whole, and with it every stage before: each is a config derived from
it, made once and shared by all who ask for the same.
"""

import copy
from collections.abc import Mapping
from typing import Any

from gda.config.baselines import TEACHERS, architecture, plain_training
from gda.config.signature import locate
from gda.config.task_needs import CLASSIFICATION, TaskNeeds

AUTO = "auto"

NO_ENCODER: dict[str, Any] = {
    "name": "none",
    "checkpoint": None,
    "checkpoint_select": "last",
    "weights": "raw",
    "sha256": None,
    "seed": 0,
    "recipe": None,
    "task": None,
}
"""The encoder node of ``encoder=none``."""

_MADE = {"checkpoint": AUTO, "checkpoint_select": "last", "weights": "raw", "sha256": None}


def needs_of(config: Mapping[str, Any]) -> TaskNeeds:
    """Returns what the task of a config needs."""
    needs = getattr(locate(config["task"]["_target_"]), "needs", CLASSIFICATION)
    return needs if isinstance(needs, TaskNeeds) else CLASSIFICATION


def learns_from_classifier(config: Mapping[str, Any]) -> bool:
    """Says whether ``teacher.checkpoint=auto`` names a classifier of the stage before a meta-learner's."""
    return bool(config["task"].get("teacher_kind") == "classifier")


def teacher_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of the run that ``teacher.checkpoint=auto`` names.

    It trains the teacher's architecture plainly, with the same data and recipe, whatever the student
    and the distiller; all who ask for it get the same run. A meta-learner's teacher may be of the stage
    before, a classifier. A student's averaging is its own.
    """
    student, seed = architecture(config["teacher"]), config["teacher"]["seed"]
    if learns_from_classifier(config):
        return _classifier(config, student, seed)
    changed = _shared(config, student, seed)
    if needs_of(config).encoder:
        # The student's encoder is not the teacher's, and a teacher of another seed is another from the start.
        changed["encoder"] |= {**_MADE, "seed": seed}
    return changed


def encoder_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of the run that ``encoder.checkpoint=auto`` names.

    For a meta-learner, plain training of a classifier of the student's architecture, with the recipe
    and the task of the encoder's node. For a test, the run of this config that it tests.
    """
    if not needs_of(config).trains:
        return tested_run(config)
    seed = config["encoder"]["seed"]
    return _classifier(config, config["student"], config["seed"] if seed is None else seed)


def tested_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of the run that a test is about: the same, with the task of its stage."""
    changed = copy.deepcopy(dict(config))
    changed["task"] = copy.deepcopy(config["task"]["stage"])
    if needs_of(changed).encoder:
        changed["encoder"] |= _MADE
    else:
        changed["encoder"] = dict(NO_ENCODER)
    return changed


def runs_before(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the configs of the runs that must be there first, by the node that names each with ``auto``."""
    runs = {}
    needs = needs_of(config)
    teacher, encoder = config["teacher"], config["encoder"]
    if needs.trains and teacher["name"] is not None and teacher["checkpoint"] == AUTO:
        runs["teacher"] = teacher_run(config)
    if needs.encoder and encoder["checkpoint"] == AUTO:
        runs["encoder"] = encoder_run(config)
    return runs


def with_runs_before(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns a config and those of all runs that it builds on, however deep."""
    return [config, *(each for before in runs_before(config).values() for each in with_runs_before(before))]


def _classifier(config: Mapping[str, Any], student: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Returns the config of the classifier that the encoder's node describes."""
    stage = copy.deepcopy(dict(config))
    stage["recipe"], stage["task"] = stage["encoder"]["recipe"], stage["encoder"]["task"]
    stage["encoder"] = dict(NO_ENCODER)
    if stage["ground_truth"]["name"] == "labels":
        stage["ground_truth"]["label_smoothing"] = stage["recipe"]["label_smoothing"]
    return _shared(stage, student, seed)


def _shared(config: Mapping[str, Any], student: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Returns the config of plain training that all who ask for it share."""
    changed = plain_training(config)
    changed["student"] = dict(student)
    changed["seed"] = seed
    changed["study"] = TEACHERS
    changed["trainer"]["ema_decay"] = None
    changed["tracking"]["experiment"] = TEACHERS
    return changed
