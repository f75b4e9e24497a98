"""Checks what the models of a config need of the images, and the loss of the models."""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from gda.config.baselines import architecture
from gda.config.faults import Fault
from gda.config.loss_nodes import active_terms, plugin_nodes
from gda.config.signature import construct
from gda.config.stages import needs_of
from gda.config.weights_fit import check_weights_fit
from gda.distillers.plugin import Plugin
from gda.distillers.term import RunFacts, Term
from gda.errors import UserError
from gda.models.dry_run import dry_run
from gda.models.registry import list_models
from gda.models.tap_descriptions import TapDescription, describe
from gda.models.taps import tap_paths

_ROLES = ("student", "teacher")


def check_models(config: Mapping[str, Any], classes: int | None, image_size: int | None) -> list[Fault]:
    """Builds both models, and holds images, weights and loss against them.

    Args:
        config: The resolved config.
        classes: Classes of the data set; null when it could not be asked.
        image_size: Height and width of the images that reach the models; null when it is not known.
    """
    faults = []
    needs = needs_of(config)
    models: dict[str, nn.Module] = {}
    for role in _ROLES:
        if config[role]["name"] is None:
            continue
        try:
            models[role] = _built(config[role], classes or 10 if needs.head else None)
            if image_size is not None:
                _check_image_size(models[role], image_size)
        except UserError as error:
            faults.append(Fault(f"{role}.name", str(error)))
        except Exception as error:
            faults.append(Fault(role, f"the model can't be built: {type(error).__name__}: {error}"))
    if "teacher" in models and classes is not None:
        faults += check_weights_fit(config, models["teacher"], classes)
    if needs.encoder and "student" in models and classes is not None:
        faults += check_weights_fit(config, models["student"], classes, "encoder")
    sized = None if any(fault.where.startswith(_ROLES) for fault in faults) else image_size
    way = config["task"].get("train_way") if needs.logits_only else None
    return faults + _check_parts(config, models, way or classes, sized)


def check_tested_model(config: Mapping[str, Any], classes: int | None, image_size: int | None) -> list[Fault]:
    """Builds the student that is tested, and holds images and the weights that are named against it.

    Args:
        config: A test's resolved config.
        classes: Base classes of the data set; null when it could not be asked.
        image_size: Height and width of the test images; null when it is not known.
    """
    try:
        encoder = _built(config["student"], None)
        if image_size is not None:
            _check_image_size(encoder, image_size)
    except UserError as error:
        return [Fault("student.name", str(error))]
    except Exception as error:
        return [Fault("student", f"the model can't be built: {type(error).__name__}: {error}")]
    return [] if classes is None else check_weights_fit(config, encoder, classes, "encoder")


def _built(node: Mapping[str, Any], classes: int | None) -> nn.Module:
    return _skeleton(json.dumps(architecture(node), sort_keys=True), classes)


@lru_cache(maxsize=32)  # the cells of a grid share few architectures
def _skeleton(architecture_json: str, classes: int | None) -> nn.Module:
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


@lru_cache(maxsize=64)
def _check_image_size(model: nn.Module, image_size: int) -> None:
    dry_run(model, image_size)


@lru_cache(maxsize=256)  # so do their taps
def _described(model: nn.Module, taps: tuple[str, ...], image_size: int) -> dict[str, TapDescription]:
    return describe(model, taps, image_size)


def _check_parts(
    config: Mapping[str, Any], models: Mapping[str, nn.Module], classes: int | None, image_size: int | None
) -> list[Fault]:
    """Builds the terms, and asks them whether they can serve these models."""
    nodes: dict[str, tuple[Mapping[str, Any], type[Term] | type[Plugin]]] = {
        **{path: (node, Term) for path, node in active_terms(config).items()},
        **{path: (node, Plugin) for path, node in plugin_nodes(config).items()},
    }
    faults = []
    parts: dict[str, Term | Plugin] = {}
    turned_down: set[str] = set()
    for path, (node, kind) in nodes.items():
        try:
            part = construct({key: value for key, value in node.items() if key != "weight"})
        except Exception as error:
            faults.append(Fault(path, f"it can't be built: {type(error).__name__}: {error}"))
            continue
        if not isinstance(part, kind):
            what = (
                f"{node['_target_']} is not a {kind.__name__} (a subclass of gda.distillers.{kind.__name__})"
            )
            faults.append(Fault(f"{path}._target_", what))
            continue
        parts[path] = part
        if needs_of(config).logits_only and not _compares_logits(part):
            faults.append(_needs_more_than_logits(path, config))
            turned_down.add(path)
            continue
        refused = []
        if image_size is not None and len(models) == len(_ROLES):
            refused = _refusals(path, part, config, models, classes or 10, image_size)
        # A method that says what it needs says more than a list of modules does.
        faults += refused or _missing_taps(path, part, config, models)
    served = {path: part for path, part in parts.items() if path not in turned_down}
    return faults + _check_plugins(config, parts) + _check_views(config, served)


def _compares_logits(part: Term | Plugin) -> bool:
    """Says whether a term needs nothing but the logits of a batch."""
    if part.student_features or part.teacher_features:
        return False
    return not (isinstance(part, Term) and (part.needs_views or part.needs_fixed_classes))


def _needs_more_than_logits(path: str, config: Mapping[str, Any]) -> Fault:
    task, method = config["task"]["name"], config["distiller"]["name"]
    name = f"{method}'s {path.rpartition('.')[2]}" if path.startswith("distiller.") else path
    what = (
        f"task={task} distils the logits of episodes, whose classes change, and {name} needs more than that"
    )
    return Fault(path, what, "distiller=kd (or dkd, aug_conf, adapt_conf, dist, nkd, ttm, sinkd) plugin=none")


def _check_plugins(config: Mapping[str, Any], parts: Mapping[str, Term | Plugin]) -> list[Fault]:
    """Checks that there is a term for every plug-in to change."""
    terms = [part for part in parts.values() if isinstance(part, Term) and part.takes_plugins]
    faults = []
    for path, part in parts.items():
        if not isinstance(part, Plugin):
            continue
        served = [term for term in terms if term.sample_wise or not part.needs_sample_wise]
        if not terms:
            name = path.rpartition(".")[2]
            method = config["distiller"]["name"]
            what = f"{name} changes the logits of kd, dkd and the like; {method} has no such term"
            faults.append(Fault("plugin", what, "distiller=kd, or plugin=none"))
        elif len(served) < len(terms):
            what = "it serves losses that are means over single samples, and this method has one that is not"
            faults.append(Fault(path, what, "plugin=lskd"))
    return faults


def _check_views(config: Mapping[str, Any], parts: Mapping[str, Term | Plugin]) -> list[Fault]:
    """Checks that the recipe has the views that the terms ask for.

    One without transforms of its own would be as weak as the first, and nobody would notice.
    """
    recipe = config.get("recipe")
    known = recipe.get("view_transforms", {}) if isinstance(recipe, Mapping) else None
    if not isinstance(known, Mapping):
        return []  # reported with the recipe's structure
    asking = {
        view: path for path, part in parts.items() if isinstance(part, Term) for view in part.needs_views
    }
    faults = []
    for view, path in asking.items():
        where = f"recipe.view_transforms.{view}"
        if view not in known:
            what = f"{path} asks for this view of the images, and the recipe has none of this name"
            augment = f"+{where}.augment._target_=gda.data.random_augment.RandomAugment"
            faults.append(
                Fault(where, what, f"{augment}, or +{where}={{}} for the train transforms drawn anew")
            )
    return faults


def _missing_taps(
    path: str, part: Term | Plugin, config: Mapping[str, Any], models: Mapping[str, nn.Module]
) -> list[Fault]:
    """Looks up the modules that a term taps in the models that there are."""
    asked = (("student", part.student_features), ("teacher", part.teacher_features))
    return [
        Fault(path, f"{role} {config[role]['name']}: {problem}")
        for role, taps in asked
        if role in models
        for tap in taps
        if (problem := _tap_problem(models[role], tap)) is not None
    ]


def _tap_problem(model: nn.Module, tap: str) -> str | None:
    """Says why a model can't be tapped there; null when it can."""
    try:
        tap_paths(model, [tap])
    except UserError as error:
        return str(error)
    return None


def _described_where_possible(
    model: nn.Module, taps: tuple[str, ...], image_size: int
) -> dict[str, TapDescription]:
    existing = tuple(tap for tap in taps if _tap_problem(model, tap) is None)
    return _described(model, existing, image_size)


def _refusals(
    path: str,
    part: Term | Plugin,
    config: Mapping[str, Any],
    models: Mapping[str, nn.Module],
    classes: int,
    image_size: int,
) -> list[Fault]:
    try:
        facts = RunFacts(
            classes=classes,
            train_size=0,
            student_features=_described_where_possible(models["student"], part.student_features, image_size),
            teacher_features=_described_where_possible(models["teacher"], part.teacher_features, image_size),
            student=models["student"],
            teacher=models["teacher"],
        )
    except UserError as error:
        return [Fault(path, str(error))]
    pair = f"{config['teacher']['name']} -> {config['student']['name']}"
    return [Fault(path, f"{pair}: {what}") for what in part.refusals(facts)]
