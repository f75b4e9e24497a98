"""Which runs are the same experiment: the group hash, and the groups a run is compared with.

A group is everything that changes the result, except the seed. Runs of one group differ only by
seed; the report aggregates over them.
"""

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from gda.config.schema import learning_rate
from gda.config.signature import locate

VERSION = 1

_RESULT_NODES = (
    "dataset",
    "teacher",
    "student",
    "distiller",
    "plugin",
    "alignment",
    "ground_truth",
    "recipe",
    "task",
    "trainer",
)
# What these nodes hold beside the things that change a result.
_NEUTRAL = {
    "dataset": ("root", "download", "max_memory_gib", "statistics"),
    # replaced by the identity of the weights
    "teacher": ("checkpoint", "checkpoint_select", "weights", "sha256", "seed"),
    # label smoothing stands in ground_truth, where labels are used at all
    "recipe": (
        "evaluation_batch_size",
        "validation",
        "statistics",
        "lr",
        "lr_by_model",
        "label_smoothing",
    ),
    "trainer": ("device", "channels_last", "compile", "deterministic", "threads", "finite_check_every"),
}

TEACHERS = "teachers"
"""The study of the runs that ``teacher.checkpoint=auto`` makes; no other run belongs there."""

ALIGNMENT_TERMS = ("fisher_rao", "sinkhorn")
"""The terms of the alignment node; no term of a distiller may have their names."""

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


@dataclass(frozen=True)
class Identity:
    """What a run is, and what it is compared with.

    Attributes:
        group: Hash of what changes the result.
        label: Short name of the method, e.g. ``kd+gda``.
        name: Readable folder name that ends in the group.
        twin_group: Group of the same config with ``alignment=none``; null for such a run itself.
        vanilla_group: Group of plain training of the same student.
    """

    group: str
    label: str
    name: str
    twin_group: str | None
    vanilla_group: str


def identify(config: Mapping[str, Any], weights: str | None = None, data: str | None = None) -> Identity:
    """Derives a run's identity from its resolved config.

    Args:
        config: The resolved config as plain data.
        weights: Identity of the teacher's weights: the SHA-256 of a file or the group and seed of an
            ``auto`` run; null without a teacher.
        data: Fingerprint of data that the config does not determine, e.g. of an image folder.
    """
    label = label_of(config)
    group = _group(config, weights, data)
    twin = _group(without_alignment(config), weights, data) if _is_aligned(config) else None
    student = config["student"]["name"]
    teacher = config["teacher"]["name"]
    pair = f"{teacher}-{student}" if teacher and uses_teacher(config) else str(student)
    readable = re.sub(
        r"[^\w.+-]+", "_", f"{config['dataset']['name']}-{config['recipe']['name']}-{pair}-{label}"
    )
    readable = readable.rstrip("_")
    return Identity(
        group=group,
        label=label,
        name=f"{readable}-{group}",
        twin_group=twin,
        vanilla_group=_group(plain_training(config), None, data),
    )


def label_of(config: Mapping[str, Any]) -> str:
    """Returns the short name of the method, e.g. ``kd+gda`` or ``vanilla (label-free)``."""
    label = str(config["distiller"]["name"])
    if config["plugin"]["plugins"]:
        label += f"+{config['plugin']['name']}"
    if _is_aligned(config):
        label += f"+{config['alignment']['name']}"
    if config["ground_truth"]["name"] != "labels":
        label += " (label-free)"
    return label


def uses_teacher(config: Mapping[str, Any]) -> bool:
    """Says whether the loss reads the teacher; a teacher of plain training only measures fidelity."""
    return bool(active_terms(config)) or config["ground_truth"]["name"] != "labels"


def active_terms(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns the nodes of the terms that are computed, by dotted path: enabled, and of weight not 0."""
    nodes = {f"distiller.terms.{name}": node for name, node in config["distiller"]["terms"].items()}
    if config["alignment"]["enabled"]:
        nodes |= {f"alignment.{name}": config["alignment"][name] for name in ALIGNMENT_TERMS}
    return {path: node for path, node in nodes.items() if _weighs(node)}


def plugin_nodes(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns the nodes of the plug-ins, by dotted path."""
    return {f"plugin.plugins.{name}": node for name, node in config["plugin"]["plugins"].items()}


def optimizer_node(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the node of the optimiser: the recipe's, or the method's own with the recipe's options."""
    recipe, own = dict(config["recipe"]["optimizer"]), config["distiller"].get("optimizer")
    return recipe if own is None else {**recipe, **own}


def weight_of(path: str, config: Mapping[str, Any]) -> Any:
    """Returns the weight of an active term as it counts: its own, times the factor of the plug-in."""
    nodes = active_terms(config)
    weight, name = nodes[path]["weight"], path.rpartition(".")[2]
    factor = config["plugin"]["weight_factors"].get(name, 1.0)
    if factor == 1.0 or not path.startswith("distiller."):
        return weight
    if isinstance(weight, Mapping):
        return {**weight, "value": weight.get("value", 1.0) * factor}
    return weight * factor


def _is_aligned(config: Mapping[str, Any]) -> bool:
    return any(path.startswith("alignment.") for path in active_terms(config))


def _weighs(term: Mapping[str, Any]) -> bool:
    weight = term.get("weight")
    return bool((weight.get("value", 1.0) if isinstance(weight, Mapping) else weight) != 0)


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


def teacher_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of the run that ``teacher.checkpoint=auto`` names.

    It trains the teacher's architecture plainly, with the same data and recipe, whatever the student
    and the distiller; all who ask for it get the same run. A student's averaging is its own.
    """
    changed = plain_training(config)
    changed["student"] = architecture(config["teacher"])
    changed["seed"] = config["teacher"]["seed"]
    changed["study"] = TEACHERS
    changed["trainer"]["ema_decay"] = None
    changed["tracking"]["experiment"] = TEACHERS
    return changed


def architecture(node: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a teacher node without the keys that say where its weights come from."""
    return {key: value for key, value in node.items() if key not in _NEUTRAL["teacher"]}


def _group(config: Mapping[str, Any], weights: str | None, data: str | None) -> str:
    nodes = {name: copy.deepcopy(dict(config[name])) for name in _RESULT_NODES}
    for name, keys in _NEUTRAL.items():
        for key in keys:
            nodes[name].pop(key, None)
    recipe = config["recipe"]
    nodes["recipe"]["lr"] = learning_rate(recipe["lr"], recipe["lr_by_model"], config["student"]["name"])
    if not uses_teacher(config):
        del nodes["teacher"]
        weights = None
    if not config["plugin"]["plugins"]:
        del nodes["plugin"]
    else:  # factors on weights that there are; plug-ins nest, so that their order counts
        terms = config["distiller"]["terms"]
        factors = {
            name: factor for name, factor in nodes["plugin"]["weight_factors"].items() if name in terms
        }
        nodes["plugin"] = {"weight_factors": factors, "plugins": list(nodes["plugin"]["plugins"].items())}
    if not _is_aligned(config):
        del nodes["alignment"]
    else:
        del nodes["alignment"]["name"]  # the weights say it all: sinkhorn is gda without Fisher-Rao
    for transforms in ("train_transforms", "test_transforms"):  # applied in order, so the order counts
        named = nodes["recipe"][transforms]
        nodes["recipe"][transforms] = [[key, node] for key, node in named.items() if node is not None]
    nodes["recipe"].pop("view_transforms", None)
    views = _views(config)  # those that no term looks at change nothing
    if views:
        nodes["recipe"]["view_transforms"] = views
    table = _left_out()
    content: dict[str, Any] = {
        "version": VERSION,
        "config": {
            name: _canonical(node, table["config"].get(name), table["targets"])
            for name, node in nodes.items()
        },
        "weights": weights,
    }
    if data is not None:
        content["data"] = data
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _views(config: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Returns the named transforms, in order, of the views that the active terms ask for."""
    targets = [locate(node["_target_"]) for node in active_terms(config).values()]
    asked = {view for target in targets for view in getattr(target, "needs_views", ())}
    known = config["recipe"].get("view_transforms", {})
    return {
        view: [[key, node] for key, node in known.get(view, {}).items() if node is not None]
        for view in sorted(asked)
    }


def _canonical(node: Any, left_out: Any, targets: Mapping[str, Any]) -> Any:
    """Drops disabled terms and values that the table leaves out; numbers become one form."""
    if isinstance(node, Mapping):
        table = {**(left_out or {}), **targets.get(str(node.get("_target_")), {})}
        return {
            key: _canonical(value, table.get(key) if isinstance(value, Mapping) else None, targets)
            for key, value in _plain_weight(node).items()
            if not (key in table and not isinstance(value, Mapping) and table[key] == value)
            and not (isinstance(value, Mapping) and "weight" in value and not _weighs(value))
        }
    if isinstance(node, list | tuple):
        return [_canonical(item, None, targets) for item in node]
    if isinstance(node, float) and node.is_integer():
        return int(node)  # 1 and 1.0 are the same choice
    return node


def _plain_weight(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """Writes a weight without a warm-up as a number: both spellings are the same choice."""
    weight = node.get("weight")
    if not isinstance(weight, Mapping) or weight.get("warmup_epochs", 0) != 0:
        return node
    return {**node, "weight": weight.get("value", 1.0)}


@cache
def _left_out() -> dict[str, Any]:
    text = files("gda.config").joinpath(f"identity_v{VERSION}.yaml").read_text(encoding="utf-8")
    loaded = yaml.safe_load(text)
    return {"config": loaded["config"], "targets": loaded["targets"]}
