"""Checks what the parts of a config need of each other and of this machine."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gda.config.baselines import TEACHERS
from gda.config.faults import Fault
from gda.config.loss_nodes import active_terms, optimizer_node, uses_teacher
from gda.config.ranks import runs_here
from gda.config.signature import construct, locate
from gda.config.stages import AUTO, learns_from_classifier, needs_of
from gda.data.few_shot.listing import FewShotFacts
from gda.data.few_shot.source import FewShotSource
from gda.data.source import DatasetFacts
from gda.distillers.schedule import Weight
from gda.errors import UserError
from gda.tracking.mlflow_store import absolute_uri

Facts = DatasetFacts | FewShotFacts


def check_dataset(config: Mapping[str, Any]) -> tuple[list[Fault], Facts | None]:
    """Asks the data set what is missing, and for the sizes it will have; reads no image."""
    try:
        source = construct(config["dataset"])
        if not issubclass(type(source), needs_of(config).source):
            return [_wrong_kind(config, source)], None
        problems = source.problems()
        faults = [Fault("dataset", problem) for problem in problems]
        return faults, source.facts() if not problems else source.known_facts()
    except UserError as error:
        return [Fault("dataset", str(error))], None


def _wrong_kind(config: Mapping[str, Any], source: object) -> Fault:
    """Says that classification takes one kind of data set, and episodes another."""
    name, task = config["dataset"]["name"], config["task"]["name"]
    if isinstance(source, FewShotSource):
        what = f"{name} has base classes and novel ones, for few-shot learning, and task={task} takes one set"
        return Fault("dataset", what, "task=few_shot_classifier, or dataset=digits")
    what = f"task={task} needs base classes and novel ones, and {name} has one set of classes"
    return Fault("dataset", what, "dataset=digits_few_shot, or task=classification")


def check_recipe(config: Mapping[str, Any]) -> list[Fault]:
    """Checks what a recipe must have whatever the data set: a learning rate, an optimiser, a batch."""
    recipe = config["recipe"]
    trained = [config["student"].get("name")]
    made = config["teacher"].get("checkpoint") == AUTO and config["teacher"].get("name") is not None
    if made and not learns_from_classifier(config):  # which the encoder's recipe trains
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
    return faults


def check_optimizer(config: Mapping[str, Any]) -> list[Fault]:
    """Checks that the optimiser takes its options."""
    own = config["distiller"].get("optimizer")
    replaced = config["recipe"]["optimizer"]["_target_"]
    if own is not None and replaced != "torch.optim.SGD":
        what = f"it takes the place of SGD, and this recipe trains with {replaced}"
        return [Fault("distiller.optimizer", what, "recipe=crd, or another distiller")]
    node = optimizer_node(config)
    options = {key: value for key, value in node.items() if not key.startswith("_")}
    try:
        # Optimisers check their own ranges first and refuse an empty list next; with a parameter, torch
        # would import its compiler here, which takes two seconds.
        locate(node["_target_"])([], lr=0.1, **options)
    except (TypeError, ValueError) as error:
        if "empty parameter list" not in str(error):
            where = "recipe.optimizer" if own is None else "distiller.optimizer"
            return [Fault(where, str(error))]
    return []


def check_batches(recipe: Mapping[str, Any], facts: Facts) -> list[Fault]:
    """Checks batch size and image sizes against the data set."""
    batch, size = recipe["batch_size"], facts.train_size
    faults = []
    if recipe["drop_last"] and batch > size:
        what = f"{size} training images do not fill one batch of {batch}, and drop_last is on"
        faults.append(Fault("recipe.batch_size", what, f"recipe.batch_size={max(2, size)}"))
    elif not recipe["drop_last"] and size % batch == 1 and batch > 1:
        what = f"the last batch of an epoch would hold one image ({size} images in batches of {batch})"
        faults.append(Fault("recipe.batch_size", what, "recipe.drop_last=true"))
    return faults + check_image_sizes(recipe, facts)


def check_image_sizes(recipe: Mapping[str, Any], facts: Facts) -> list[Fault]:
    """Follows the image size through the transforms: all images must come out alike."""
    return image_size(recipe, facts)[0]


def image_size(recipe: Mapping[str, Any], facts: Facts) -> tuple[list[Fault], int | None]:
    """Follows the image size through the transforms.

    Args:
        recipe: The recipe's node.
        facts: What is known of the data set.

    Returns:
        Faults, and height and width of the images that reach a model; null where there are faults.
    """
    faults, train = _size_after("recipe.train_transforms", recipe["train_transforms"], facts.image_size)
    known = not faults
    tested = facts.evaluation_image_size
    others = [("recipe.test_transforms", "test images", recipe["test_transforms"], tested)]
    for view, nodes in recipe.get("view_transforms", {}).items():  # they follow the train transforms
        others.append((f"recipe.view_transforms.{view}", f"the view {view}", nodes, train))
    for path, kind, nodes, before in others:
        found, size = _size_after(path, nodes, before)
        if known and not found and size != train:
            found = [Fault(path, f"training images come out {train} pixels wide and {kind} {size}")]
        faults += found
    return faults, None if faults else train


def size_of_test_images(recipe: Mapping[str, Any], facts: Facts) -> tuple[list[Fault], int | None]:
    """Follows the size of test images alone, as :func:`image_size` does that of all."""
    faults, size = _size_after(
        "recipe.test_transforms", recipe["test_transforms"], facts.evaluation_image_size
    )
    return faults, None if faults else size


def _size_after(path: str, nodes: Mapping[str, Any], size: int) -> tuple[list[Fault], int]:
    """Follows the image size through named transforms; those of test images may not be random."""
    faults = []
    for name, node in nodes.items():
        where = f"{path}.{name}"
        try:
            if node is not None:
                transform = construct(node)
                size = transform.output_size(size)
                if path == "recipe.test_transforms" and transform.random:
                    what = "a random transform has no place in an evaluation"
                    faults.append(Fault(where, what, f"~{where}"))
        except UserError as error:
            faults.append(Fault(where, str(error)))
    return faults, size


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


def check_device(config: Mapping[str, Any]) -> list[Fault]:
    """Checks that the machine has the device: this one, or a node of the cluster that the run goes to."""
    name = config["trainer"]["device"]
    if name == "auto":
        return []
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps", "xpu"):
        return [Fault("trainer.device", f"{name!r} is not a device to train on", "trainer.device=auto")]
    if not runs_here(config):
        if device.type == "cuda" and config["cluster"].get("gpus_per_node") == 0:
            return [Fault("trainer.device", "the jobs ask for no GPU", "cluster.gpus_per_node=1")]
        return []
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
