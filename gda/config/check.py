"""The whole-config check: all faults at once, before anything is downloaded, allocated or submitted."""

import json
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from gda.config.faults import ConfigFaults, Fault
from gda.config.identity import architecture
from gda.config.schema import NESTED, Config, Weights
from gda.config.signature import TargetError, check_call, check_value, construct, locate
from gda.data.source import DatasetFacts
from gda.distillers.schedule import Weight
from gda.distillers.term import Term
from gda.errors import UserError
from gda.models.checkpoints import mismatches, read_state_dict
from gda.tracking.mlflow_store import absolute_uri

# What the code adds at the call of each target; configs must not set these.
_TASK_ARGUMENTS = (
    "student",
    "teacher",
    "distiller",
    "dataset",
    "recipe",
    "train_transforms",
    "test_transforms",
    "seed",
    "device",
    "channels_last",
)
_WEIGHT_KEYS = ("checkpoint", "checkpoint_select", "seed")


def resolved(config: DictConfig) -> dict[str, Any]:
    """Returns a composed config as plain data, interpolations resolved.

    Raises:
        ConfigFaults: Interpolations lead nowhere; all of them are named.
    """
    faults = list(_broken_interpolations(config, ""))
    if faults:
        raise ConfigFaults(faults)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key not in ("experiment", "sweep")}


def check(config: Mapping[str, Any]) -> list[Fault]:
    """Checks a resolved config without running any of it.

    Names, types and ranges come first, from the signatures; then what the parts need of each other.

    Returns:
        All faults; empty when the config can be run on this machine.
    """
    faults = _check_signatures(config)
    broken = {fault.where.split(".")[0] for fault in faults}
    if {"study", "seed", "check", "runs"} & broken or any(
        name not in config for name in Config.__annotations__
    ):
        return faults
    facts = None
    if "dataset" not in broken:
        problems, facts = _check_dataset(config)
        faults += problems
    if facts is not None and "recipe" not in broken:
        faults += _check_batches(config, facts)
    if not {"teacher", "student"} & broken:
        faults += _check_teacher(config, broken)
        if facts is not None:
            faults += _check_models(config, facts.classes, broken)
    if "trainer" not in broken:
        faults += _check_device(config["trainer"])
    if "tracking" not in broken:
        faults += _check_tracking(config["tracking"])
    return faults + _check_runs_folder(config["runs"])


def _broken_interpolations(node: Any, path: str) -> Iterator[Fault]:
    """Finds values that lead nowhere, by their dotted path."""
    if not isinstance(node, DictConfig) or node._is_missing() or node._is_none():
        return
    for name in node:
        key = str(name)
        where = f"{path}.{key}" if path else key
        try:
            child = node._get_node(key) if OmegaConf.is_missing(node, key) else node[key]
        except OmegaConfBaseException as error:
            yield Fault(where, f"its value can't be resolved: {str(error).splitlines()[0]}")
            continue
        yield from _broken_interpolations(child, where)


def _check_signatures(config: Mapping[str, Any]) -> list[Fault]:
    faults = check_call("", config, Config)
    for name, schema in NESTED.items():
        if isinstance(config.get(name), Mapping):
            faults += check_call(name, config[name], schema)
    checked = {
        "dataset": ((), ()),
        "student": (("num_classes",), ()),
        "ground_truth": ((), ("name",)),
        "task": (_TASK_ARGUMENTS, ("name",)),
        "recipe.optimizer": (("params", "lr"), ()),
        "recipe.schedule": (("lr", "epochs"), ()),
    }
    nodes: list[tuple[str, Any, tuple[str, ...], tuple[str, ...]]] = [
        (path, _at(config, path), supplied, ignored) for path, (supplied, ignored) in checked.items()
    ]
    teacher = config.get("teacher")
    if isinstance(teacher, Mapping):
        faults += check_call(
            "teacher", {k: v for k, v in teacher.items() if k in Weights.__annotations__}, Weights
        )
        if teacher.get("name") is not None:
            nodes.append(("teacher", teacher, ("num_classes",), _WEIGHT_KEYS))
    for path, term in _terms(config):
        nodes.append((path, term, (), ("weight",)))
        if isinstance(term, Mapping):
            faults += _check_weight(f"{path}.weight", term.get("weight"))
    faults += _check_weight("distiller.ground_truth_weight", _at(config, "distiller.ground_truth_weight"))
    for group in ("recipe.train_transforms", "recipe.test_transforms"):
        transforms = _at(config, group)
        if isinstance(transforms, Mapping):
            nodes += [
                (f"{group}.{name}", node, (), ()) for name, node in transforms.items() if node is not None
            ]
    for path, node, supplied, ignored in nodes:
        faults += _check_target(path, node, supplied, ignored)
    return _unique(faults)


def _check_target(path: str, node: Any, supplied: tuple[str, ...], ignored: tuple[str, ...]) -> list[Fault]:
    if node is None:
        return []  # reported as a missing key of its parent
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        return [Fault(path, "this needs a mapping with a _target_, the class or function to call")]
    try:
        target = locate(node["_target_"])
    except TargetError as error:
        return [Fault(f"{path}._target_", str(error))]
    return check_call(path, node, target, supplied=supplied, ignored=ignored)


def _check_weight(path: str, weight: Any) -> list[Fault]:
    if isinstance(weight, Mapping):
        return check_call(path, weight, Weight)
    if weight is None:
        return [
            Fault(path, "a weight is needed, a number or {value: ..., warmup_epochs: ...}", f"+{path}=1.0")
        ]
    hint = Weight.__dataclass_fields__["value"].type
    return check_value(path, weight, hint)


def _check_dataset(config: Mapping[str, Any]) -> tuple[list[Fault], DatasetFacts | None]:
    try:
        source = construct(config["dataset"])
        problems = source.problems()
        if problems:
            return [Fault("dataset", problem) for problem in problems], None
        return [], source.facts()
    except UserError as error:
        return [Fault("dataset", str(error))], None


def _check_batches(config: Mapping[str, Any], facts: DatasetFacts) -> list[Fault]:
    recipe = config["recipe"]
    batch, size = recipe["batch_size"], facts.train_size
    faults = []
    if recipe["lr"] is None and not {"default", config["student"].get("name")} & set(recipe["lr_by_model"]):
        faults.append(Fault("recipe.lr", "there is no learning rate for this student", "recipe.lr=0.05"))
    if batch < 2:
        faults.append(
            Fault(
                "recipe.batch_size",
                "a batch of one image has no batch statistics: batch norm and alignment need two",
                "recipe.batch_size=64",
            )
        )
    elif recipe["drop_last"] and batch > size:
        what = f"{size} training images do not fill one batch of {batch}, and drop_last is on"
        faults.append(Fault("recipe.batch_size", what, f"recipe.batch_size={max(2, size)}"))
    elif not recipe["drop_last"] and size % batch == 1:
        what = f"the last batch of an epoch would hold one image ({size} images in batches of {batch})"
        faults.append(Fault("recipe.batch_size", what, "recipe.drop_last=true"))
    return faults + _check_image_sizes(recipe, facts)


def _check_image_sizes(recipe: Mapping[str, Any], facts: DatasetFacts) -> list[Fault]:
    """Follows the image size through the transforms: training and test images must come out alike."""
    faults, sizes = [], {}
    for group in ("train_transforms", "test_transforms"):
        size = facts.image_size
        for name, node in recipe[group].items():
            where = f"recipe.{group}.{name}"
            try:
                if node is not None:
                    transform = construct(node)
                    size = transform.output_size(size)
                    if group == "test_transforms" and transform.random:
                        faults.append(
                            Fault(where, "a random transform has no place in an evaluation", f"~{where}")
                        )
            except UserError as error:
                faults.append(Fault(where, str(error)))
        sizes[group] = size
    if not faults and sizes["train_transforms"] != sizes["test_transforms"]:
        what = (
            f"training images come out {sizes['train_transforms']} pixels wide and "
            f"test images {sizes['test_transforms']}"
        )
        faults.append(Fault("recipe.test_transforms", what))
    return faults


def _check_teacher(config: Mapping[str, Any], broken: set[str]) -> list[Fault]:
    teacher = config["teacher"]
    if teacher["name"] is None:
        if {"distiller", "alignment", "ground_truth"} & broken or not _needs_teacher(config):
            return []
        what = "this loss learns from a teacher, and there is none"
        return [
            Fault(
                "teacher", what, "teacher=resnet56, or distiller=vanilla alignment=none ground_truth=labels"
            )
        ]
    if teacher["checkpoint"] is None and not teacher.get("pretrained"):
        what = "a teacher without weights would teach noise"
        return [Fault("teacher.checkpoint", what, "teacher.checkpoint=auto, or a file")]
    if teacher["checkpoint"] == "auto":
        if teacher["checkpoint_select"] == "best" and not config["dataset"].get("validation"):
            what = "the best epoch is chosen on held-out images, and none are held out"
            return [
                Fault(
                    "teacher.checkpoint_select",
                    what,
                    "teacher.checkpoint_select=last or dataset.validation=0.1",
                )
            ]
    elif teacher["checkpoint"] is not None and not Path(teacher["checkpoint"]).is_file():
        what = f"there is no file {teacher['checkpoint']}"
        return [Fault("teacher.checkpoint", what, "teacher.checkpoint=auto trains this teacher")]
    return []


def _needs_teacher(config: Mapping[str, Any]) -> bool:
    targets = [term["_target_"] for _, term in _terms(config, active_only=True)]
    targets.append(config["ground_truth"]["_target_"])
    return any(getattr(locate(target), "needs_teacher", True) for target in targets)


def _check_models(config: Mapping[str, Any], classes: int, broken: set[str]) -> list[Fault]:
    faults = []
    models: dict[str, nn.Module] = {}
    for role in ("student", "teacher"):
        if config[role]["name"] is None:
            continue
        try:
            models[role] = _skeleton(json.dumps(architecture(config[role]), sort_keys=True), classes)
        except UserError as error:
            faults.append(Fault(f"{role}.name", str(error)))
        except Exception as error:
            faults.append(Fault(role, f"the model can't be built: {type(error).__name__}: {error}"))
    if "teacher" in models:
        faults += _check_weights_fit(config["teacher"], models["teacher"], classes)
    if not {"distiller", "alignment"} & broken:
        faults += _check_taps(config, models)
    return faults


@lru_cache(maxsize=32)  # the cells of a grid share few architectures
def _skeleton(architecture_json: str, classes: int) -> nn.Module:
    """Builds a model without memory or work, for its names and shapes."""
    node = json.loads(architecture_json)
    if "pretrained" in node:
        node["pretrained"] = False
    with torch.device("meta"):
        model: nn.Module = construct(node, num_classes=classes)
    return model


def _check_weights_fit(teacher: Mapping[str, Any], model: nn.Module, classes: int) -> list[Fault]:
    path = teacher["checkpoint"]
    if path in (None, "auto") or not Path(path).is_file():
        return []
    try:
        state = read_state_dict(path)
    except UserError as error:
        return [Fault("teacher.checkpoint", str(error))]
    problems = mismatches(model, state)
    if not problems:
        return []
    heads = [value for value in state.values() if value.ndim == 2]
    if heads and heads[-1].shape[0] != classes and len(problems) == 1:
        what = f"{path} was trained for {heads[-1].shape[0]} classes, and the data set has {classes}"
        return [Fault("teacher.checkpoint", what, "teacher.checkpoint=auto, or a file for this data set")]
    return [
        Fault(
            "teacher.checkpoint", f"the weights in {path} do not fit {teacher['name']}: {'; '.join(problems)}"
        )
    ]


def _check_taps(config: Mapping[str, Any], models: Mapping[str, nn.Module]) -> list[Fault]:
    """Looks up the modules that the terms tap in the models that there are."""
    faults = []
    for path, node in _terms(config, active_only=True):
        try:
            term = construct({key: value for key, value in node.items() if key != "weight"})
        except Exception as error:
            faults.append(Fault(path, f"the term can't be built: {type(error).__name__}: {error}"))
            continue
        if not isinstance(term, Term):
            what = f"{node['_target_']} is not a Term (a subclass of gda.distillers.Term)"
            faults.append(Fault(f"{path}._target_", what))
            continue
        for role, paths in (("student", term.student_features), ("teacher", term.teacher_features)):
            if role in models:
                known = dict(models[role].named_modules())
                missing = [tap for tap in paths if tap not in known]
                faults += [
                    Fault(path, f"the {role} {config[role]['name']} has no module {tap!r}") for tap in missing
                ]
    return faults


def _check_device(trainer: Mapping[str, Any]) -> list[Fault]:
    name = trainer["device"]
    if name == "auto":
        return []
    try:
        device = torch.device(name)
    except RuntimeError:
        return [Fault("trainer.device", f"{name!r} is not a device", "trainer.device=auto")]
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        return [Fault("trainer.device", f"this machine has no {name}", "trainer.device=auto")]
    return []


def _check_tracking(tracking: Mapping[str, Any]) -> list[Fault]:
    if not tracking["enabled"] or tracking["uri"] is None:
        return []
    try:
        absolute_uri(tracking["uri"])
    except UserError as error:
        return [Fault("tracking.uri", str(error), "tracking.uri=null, for a database beside the runs")]
    return []


def _check_runs_folder(runs: str) -> list[Fault]:
    folder = Path(runs).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return [Fault("runs", f"the folder {folder} can't be written", "runs=FOLDER")]
    return []


def _terms(config: Mapping[str, Any], active_only: bool = False) -> list[tuple[str, Any]]:
    """Returns the paths and nodes of all terms; optionally only those that are computed."""
    terms = _at(config, "distiller.terms")
    nodes = (
        [(f"distiller.terms.{name}", node) for name, node in terms.items()]
        if isinstance(terms, Mapping)
        else []
    )
    alignment = config.get("alignment")
    if isinstance(alignment, Mapping) and (alignment.get("enabled") or not active_only):
        nodes += [(f"alignment.{name}", alignment.get(name)) for name in ("fisher_rao", "sinkhorn")]
    if active_only:
        nodes = [(path, node) for path, node in nodes if Weight.parse(node["weight"]).value != 0]
    return nodes


def _at(config: Mapping[str, Any], path: str) -> Any:
    node: Any = config
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _unique(faults: list[Fault]) -> list[Fault]:
    return list(dict.fromkeys(faults))
