"""Checks what the parts of a config need of each other and of this machine."""

import json
import os
import re
from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gda.config.faults import Fault
from gda.config.identity import TEACHERS, active_terms, architecture, uses_teacher
from gda.config.signature import construct, locate
from gda.data.source import DatasetFacts
from gda.distillers.schedule import Weight
from gda.distillers.term import Term
from gda.errors import UserError
from gda.models import list_models
from gda.models.checkpoints import mismatches, read_state_dict
from gda.models.taps import tap_paths
from gda.tracking.mlflow_store import absolute_uri


def check_dataset(config: Mapping[str, Any]) -> tuple[list[Fault], DatasetFacts | None]:
    """Asks the data set what is missing, and for the sizes it will have; reads no image."""
    try:
        source = construct(config["dataset"])
        problems = source.problems()
        faults = [Fault("dataset", problem) for problem in problems]
        return faults, source.facts() if not problems else source.known_facts()
    except UserError as error:
        return [Fault("dataset", str(error))], None


def check_recipe(config: Mapping[str, Any]) -> list[Fault]:
    """Checks what a recipe must have whatever the data set: a learning rate, an optimiser, a batch."""
    recipe = config["recipe"]
    trained = [config["student"].get("name")]
    if config["teacher"].get("checkpoint") == "auto" and config["teacher"].get("name") is not None:
        trained.append(config["teacher"]["name"])
    faults = []
    known = recipe["lr_by_model"]
    lacking = [str(model) for model in trained if "default" not in known and model not in known]
    if recipe["lr"] is None and lacking:
        what = f"there is no learning rate for {' and '.join(dict.fromkeys(lacking))}"
        faults.append(Fault("recipe.lr", what, "recipe.lr=0.05"))
    if recipe["batch_size"] < 2:
        what = "a batch of one image has no batch statistics: batch norm and alignment need two"
        faults.append(Fault("recipe.batch_size", what, "recipe.batch_size=64"))
    options = {key: value for key, value in recipe["optimizer"].items() if not key.startswith("_")}
    try:
        # Optimisers check their own ranges first and refuse an empty list next; with a parameter, torch
        # would import its compiler here, which takes two seconds.
        locate(recipe["optimizer"]["_target_"])([], lr=0.1, **options)
    except (TypeError, ValueError) as error:
        if "empty parameter list" not in str(error):
            faults.append(Fault("recipe.optimizer", str(error)))
    return faults


def check_batches(recipe: Mapping[str, Any], facts: DatasetFacts) -> list[Fault]:
    """Checks batch size and image sizes against the data set."""
    batch, size = recipe["batch_size"], facts.train_size
    faults = []
    if recipe["drop_last"] and batch > size:
        what = f"{size} training images do not fill one batch of {batch}, and drop_last is on"
        faults.append(Fault("recipe.batch_size", what, f"recipe.batch_size={max(2, size)}"))
    elif not recipe["drop_last"] and size % batch == 1 and batch > 1:
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


def check_loss(config: Mapping[str, Any]) -> list[Fault]:
    """Checks that there is something to train on."""
    weight = config["distiller"]["ground_truth_weight"]
    if active_terms(config) or Weight.parse(weight).value != 0:
        return []
    what = "every weight of the loss is 0: there is nothing to train on"
    return [Fault("distiller.ground_truth_weight", what, "distiller.ground_truth_weight=1.0")]


def check_teacher_needed(config: Mapping[str, Any]) -> list[Fault]:
    """Checks that there is a teacher where the loss reads one."""
    targets = [node["_target_"] for node in active_terms(config).values()]
    targets.append(config["ground_truth"]["_target_"])
    needed = any(getattr(locate(target), "needs_teacher", True) for target in targets)
    if config["teacher"]["name"] is not None or not needed:
        return []
    what = "this loss learns from a teacher, and there is none"
    return [
        Fault("teacher", what, "teacher=resnet56, or distiller=vanilla alignment=none ground_truth=labels")
    ]


def check_teacher_weights(config: Mapping[str, Any]) -> list[Fault]:
    """Checks that a teacher has weights: one without would teach noise, silently."""
    teacher = config["teacher"]
    if teacher["name"] is None:
        return []
    if teacher["checkpoint"] is None and not teacher.get("pretrained"):
        what = "a teacher without weights would teach noise"
        return [Fault("teacher.checkpoint", what, "teacher.checkpoint=auto, or a file")]
    if teacher["checkpoint"] == "auto":
        if teacher["checkpoint_select"] == "best" and not config["dataset"].get("validation"):
            what = "the best epoch is chosen on held-out images, and none are held out"
            fix = "teacher.checkpoint_select=last or dataset.validation=0.1"
            return [Fault("teacher.checkpoint_select", what, fix)]
    elif teacher["checkpoint"] is not None and not Path(teacher["checkpoint"]).is_file():
        what = f"there is no file {teacher['checkpoint']}"
        if "://" in teacher["checkpoint"]:
            what = "weights are read from files only; fetch this one and name the file"
        elif Path(teacher["checkpoint"]).is_dir():
            what = f"{teacher['checkpoint']} is a folder; name a file in it, such as its last.pt"
        return [Fault("teacher.checkpoint", what, "teacher.checkpoint=auto trains this teacher")]
    return []


def check_models(config: Mapping[str, Any], classes: int | None) -> list[Fault]:
    """Builds both models and checks weights and tapped modules against them.

    Args:
        config: The resolved config.
        classes: Classes of the data set; null when it could not be asked.
    """
    faults = []
    models: dict[str, nn.Module] = {}
    for role in ("student", "teacher"):
        if config[role]["name"] is None:
            continue
        try:
            models[role] = _skeleton(json.dumps(architecture(config[role]), sort_keys=True), classes or 10)
        except UserError as error:
            faults.append(Fault(f"{role}.name", str(error)))
        except Exception as error:
            faults.append(Fault(role, f"the model can't be built: {type(error).__name__}: {error}"))
    if "teacher" in models and classes is not None:
        faults += _check_weights_fit(config["teacher"], models["teacher"], classes)
    return faults + _check_taps(config, models)


@lru_cache(maxsize=32)  # the cells of a grid share few architectures
def _skeleton(architecture_json: str, classes: int) -> nn.Module:
    """Builds a model for its names and shapes.

    Large models are built without memory or work, on the meta device; for the small ones of the zoo
    the first use of that device alone takes longer, about two seconds.
    """
    node = json.loads(architecture_json)
    if "pretrained" in node:
        node["pretrained"] = False
    with nullcontext() if node["name"] in list_models() else torch.device("meta"):
        model: nn.Module = construct(node, num_classes=classes)
    return model


def _check_weights_fit(teacher: Mapping[str, Any], model: nn.Module, classes: int) -> list[Fault]:
    path = teacher["checkpoint"]
    if path is None and "pretrained" in teacher:
        return _check_pretrained(teacher["name"], classes)
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


def _check_pretrained(name: str, classes: int) -> list[Fault]:
    """Refuses published weights whose head timm would silently replace by a random one."""
    from timm.models import get_pretrained_cfg

    published = get_pretrained_cfg(name.removeprefix("timm/"))
    if published is None or not published.has_weights:
        return [
            Fault("teacher.name", f"timm has no published weights for {name!r}", "teacher.checkpoint=auto")
        ]
    if published.num_classes != classes:
        what = f"{name} was published for {published.num_classes} classes, and the data set has {classes}"
        return [
            Fault("teacher.pretrained", what, "teacher.checkpoint=auto fine-tunes it once on this data set")
        ]
    return []


def _check_taps(config: Mapping[str, Any], models: Mapping[str, nn.Module]) -> list[Fault]:
    """Looks up the modules that the terms tap in the models that there are."""
    faults = []
    for path, node in active_terms(config).items():
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
            for tap in paths if role in models else ():
                try:
                    tap_paths(models[role], [tap])
                except UserError as error:
                    faults.append(Fault(path, f"{role} {config[role]['name']}: {error}"))
    return faults


def check_device(trainer: Mapping[str, Any]) -> list[Fault]:
    """Checks that this machine has the device."""
    name = trainer["device"]
    if name == "auto":
        return []
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps", "xpu"):
        return [Fault("trainer.device", f"{name!r} is not a device to train on", "trainer.device=auto")]
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # torch raises all three, by device type
        return [Fault("trainer.device", f"this machine has no {name}", "trainer.device=auto")]
    return []


def check_tracking(tracking: Mapping[str, Any]) -> list[Fault]:
    """Checks that the tracking URI is one that holds runs; connects to nothing."""
    if not tracking["enabled"] or tracking["uri"] is None:
        return []
    try:
        absolute_uri(tracking["uri"])
    except UserError as error:
        return [Fault("tracking.uri", str(error), "tracking.uri=null, for a database beside the runs")]
    return []


def check_place(config: Mapping[str, Any]) -> list[Fault]:
    """Checks that run folders can be made, inside the folder of all runs."""
    faults = []
    for where, name in (
        ("study", config["study"]),
        ("tracking.experiment", config["tracking"]["experiment"]),
    ):
        if not re.fullmatch(r"\w[\w.+ -]{0,99}", name):
            plain = re.sub(r"[^\w.+-]+", "_", name).strip("_.")[:100] or "NAME"
            what = f"{name!r} is no folder name (at most 100 letters, digits, and . _ + - within)"
            faults.append(Fault(where, what, f"{where}={plain}"))
    if config["study"] == TEACHERS and uses_teacher(config):
        what = "this study holds the teachers that other runs share"
        faults.append(Fault("study", what, "study=NAME"))
    folder = Path(config["runs"]).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        faults.append(Fault("runs", f"the folder {folder} can't be written", "runs=FOLDER"))
    return faults
