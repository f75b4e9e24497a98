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

from gda.config.baselines import WEIGHT_KEYS, plain_training, without_alignment
from gda.config.loss_nodes import active_terms, is_aligned, uses_teacher, weighs
from gda.config.ranks import SCOPED, ranks_of
from gda.config.schema import learning_rate
from gda.config.signature import locate
from gda.config.stages import needs_of

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
    "dataset": ("root", "download", "max_memory_gib", "statistics", "cache"),
    # replaced by the identity of the weights
    "teacher": WEIGHT_KEYS,
    # label smoothing stands in ground_truth, where labels are used at all
    "recipe": (
        "evaluation_batch_size",
        "validation",
        "statistics",
        "lr",
        "lr_by_model",
        "label_smoothing",
    ),
    "trainer": (
        "device",
        "channels_last",
        "compile",
        "deterministic",
        "threads",
        "finite_check_every",
        "find_unused_parameters",
    ),
}


@dataclass(frozen=True)
class Identity:
    """What a run is, and what it is compared with.

    Attributes:
        group: Hash of what changes the result.
        label: Short name of the method, e.g. ``kd+gda``.
        name: Readable folder name that ends in the group.
        twin_group: Group of the same config with ``alignment=none``; null for such a run itself.
        vanilla_group: Group of plain training of the same student; null for weights of unknown origin.
    """

    group: str
    label: str
    name: str
    twin_group: str | None
    vanilla_group: str | None


def identify(
    config: Mapping[str, Any],
    weights: str | None = None,
    data: str | None = None,
    encoder: str | None = None,
) -> Identity:
    """Derives a run's identity from its resolved config.

    Args:
        config: The resolved config as plain data.
        weights: Identity of the teacher's weights: the SHA-256 of a file or the group and seed of an
            ``auto`` run; null without a teacher.
        data: Fingerprint of data that the config does not determine, e.g. of an image folder.
        encoder: Identity of the weights that the student starts with; null where it starts from none.
    """
    label = label_of(config)
    group = _group(config, weights, data, encoder)
    twin = _group(without_alignment(config), weights, data, encoder) if is_aligned(config) else None
    student = config["student"]["name"]
    teacher = config["teacher"]["name"]
    pair = f"{teacher}-{student}" if teacher and uses_teacher(config) else str(student)
    readable = _readable(f"{config['dataset']['name']}-{config['recipe']['name']}-{pair}-{label}")
    return Identity(
        group=group,
        label=label,
        name=f"{readable}-{group}",
        twin_group=twin,
        vanilla_group=_group(plain_training(config), None, data, encoder),
    )


def identify_test(config: Mapping[str, Any], tested: Mapping[str, Any], data: str | None = None) -> Identity:
    """Derives the identity of a test from that of the tested run: equal tests of equal runs are equal.

    Args:
        config: The test's resolved config.
        tested: What is known of the tested run: ``group``, ``label``, ``pair``, ``twin_group`` and
            ``vanilla_group``; ``state``, which of its states is tested; and ``folder``, what its folder's
            name says instead of the label.
        data: As in :func:`identify`.
    """

    def group(of: str | None) -> str | None:
        if of is None:
            return None
        nodes = _result_nodes(config)
        nodes = {name: nodes[name] for name in ("dataset", "student", "task")}
        # The stage is part of the tested run, but for what a test reads of it.
        stage = nodes["task"].pop("stage", None) or {}
        nodes["task"]["metric"] = nodes["task"]["metric"] or stage.get("metric", "cos")
        nodes["recipe"] = {"test_transforms": _result_nodes(config)["recipe"]["test_transforms"]}
        nodes["trainer"] = {"precision": config["trainer"]["precision"]}
        return _hash(nodes, {"tested": of, "state": tested["state"]}, data)

    own = group(tested["group"])
    assert own is not None
    said = tested.get("folder", tested["label"])
    name = f"{config['dataset']['name']}-test-{tested['recipe']}-{tested['pair']}-{said}"
    return Identity(
        group=own,
        label=tested["label"],
        name=f"{_readable(name)}-{own}",
        twin_group=group(tested["twin_group"]),
        vanilla_group=group(tested["vanilla_group"]),
    )


def label_of(config: Mapping[str, Any]) -> str:
    """Returns the short name of the method, e.g. ``kd+gda`` or ``vanilla (label-free)``."""
    label = str(config["distiller"]["name"])
    if config["plugin"]["plugins"]:
        label += f"+{config['plugin']['name']}"
    if is_aligned(config):
        label += f"+{config['alignment']['name']}"
    if config["ground_truth"]["name"] != "labels":
        label += " (label-free)"
    return label


def _readable(text: str) -> str:
    """Turns a name into part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "_", text.replace(" -> ", "-")).rstrip("_")


def _group(config: Mapping[str, Any], weights: str | None, data: str | None, encoder: str | None) -> str:
    nodes = _result_nodes(config)
    recipe = config["recipe"]
    nodes["recipe"]["lr"] = learning_rate(recipe["lr"], recipe["lr_by_model"], config["student"]["name"])
    if not uses_teacher(config):
        del nodes["teacher"]
        weights = None
        for option in needs_of(config).teacher_options:
            nodes["task"].pop(option, None)
    if not config["plugin"]["plugins"]:
        del nodes["plugin"]
    else:  # factors on weights that there are; plug-ins nest, so that their order counts
        terms = config["distiller"]["terms"]
        factors = {
            name: factor for name, factor in nodes["plugin"]["weight_factors"].items() if name in terms
        }
        nodes["plugin"] = {"weight_factors": factors, "plugins": list(nodes["plugin"]["plugins"].items())}
    if not is_aligned(config):
        del nodes["alignment"]
    else:
        del nodes["alignment"]["name"]  # the weights say it all: sinkhorn is gda without Fisher-Rao
    nodes["recipe"].pop("view_transforms", None)
    views = _views(config)  # those that no term looks at change nothing
    if views:
        nodes["recipe"]["view_transforms"] = views
    inputs: dict[str, Any] = {"weights": weights}
    if encoder is not None:
        inputs["encoder"] = encoder
    if ranks_of(config) > 1:
        inputs["ranks"] = ranks_of(config)
    else:
        _leave_out_options_of_ranks(nodes)
    return _hash(nodes, inputs, data)


def _leave_out_options_of_ranks(nodes: Mapping[str, dict[str, Any]]) -> None:
    """Takes out what says nothing where one process trains alone."""
    nodes["trainer"].pop("sync_batch_norm", None)
    for term in (*nodes["distiller"]["terms"].values(), *nodes.get("alignment", {}).values()):
        if isinstance(term, dict) and term.get("_target_") == SCOPED:
            term.pop("scope", None)


def _result_nodes(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the nodes that decide a result, without what changes none."""
    nodes = {name: copy.deepcopy(dict(config[name])) for name in _RESULT_NODES}
    for name, keys in _NEUTRAL.items():
        for key in keys:
            nodes[name].pop(key, None)
    for transforms in ("train_transforms", "test_transforms"):  # applied in order, so the order counts
        named = nodes["recipe"][transforms]
        nodes["recipe"][transforms] = [[key, node] for key, node in named.items() if node is not None]
    return nodes


def _hash(nodes: Mapping[str, Any], inputs: Mapping[str, Any], data: str | None) -> str:
    table = _left_out()
    content: dict[str, Any] = {
        "version": VERSION,
        "config": {
            name: _canonical(node, table["config"].get(name), table["targets"])
            for name, node in nodes.items()
        },
        **inputs,
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
            and not (isinstance(value, Mapping) and "weight" in value and not weighs(value))
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
