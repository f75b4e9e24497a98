"""Configs derived from a config: without alignment, and plain training."""

import copy
from collections.abc import Mapping
from typing import Any

TEACHERS = "teachers"
"""The study of the runs that ``teacher.checkpoint=auto`` makes; no other run belongs there."""

VANILLA: dict[str, Any] = {"name": "vanilla", "ground_truth_weight": 1.0, "terms": {}}
"""The distiller node of plain training, as in ``conf/distiller/vanilla.yaml``."""

NO_PLUGIN: dict[str, Any] = {"name": "none", "weight_factors": {}, "plugins": {}}
"""The plug-in node of ``plugin=none``."""

NO_TEACHER: dict[str, Any] = {
    "name": None,
    "checkpoint": None,
    "checkpoint_select": "last",
    "weights": "raw",
    "sha256": None,
    "seed": 0,
}
"""The teacher node of ``teacher=none``."""

WEIGHT_KEYS = ("checkpoint", "checkpoint_select", "weights", "sha256", "seed")
"""Keys of a teacher node that say where its weights come from."""


def without_alignment(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config with ``alignment=none``."""
    changed = copy.deepcopy(dict(config))
    changed["alignment"]["enabled"] = False
    changed["alignment"]["name"] = "none"
    return changed


def plain_training(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of plain training of the same student: no teacher, labels, no terms."""
    changed = without_alignment(config)
    changed["distiller"] = copy.deepcopy(VANILLA)
    changed["plugin"] = copy.deepcopy(NO_PLUGIN)
    changed["teacher"] = dict(NO_TEACHER)
    if config["ground_truth"]["name"] != "labels":
        changed["ground_truth"] = {
            "_target_": "gda.distillers.ground_truth.Labels",
            "name": "labels",
            "label_smoothing": config["recipe"]["label_smoothing"],
        }
    return changed


def architecture(node: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a teacher node without the keys that say where its weights come from."""
    return {key: value for key, value in node.items() if key not in WEIGHT_KEYS}
