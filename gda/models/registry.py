"""Models by name: the zoo, one file per family, and every timm model as ``timm/<name>``.

A family is a module with a ``MODELS`` table (name -> :class:`ZooEntry`). A new family is one file and
one line in ``FAMILIES``. Families and timm are imported when a name is first looked up, not before.
"""

import importlib
import inspect
from functools import cache, partial
from typing import Any

from torch import nn

from gda.errors import UserError
from gda.models.headless import leave_out_head, mark
from gda.models.zoo.entry import Builder, ZooEntry
from gda.suggestions import near

FAMILIES = (
    "gda.models.zoo.resnet_cifar",
    "gda.models.zoo.resnet_wide_stem",
    "gda.models.zoo.wide_resnet",
    "gda.models.zoo.vgg_cifar",
    "gda.models.zoo.mobilenet_v2_cifar",
    "gda.models.zoo.shufflenet_v1_cifar",
    "gda.models.zoo.shufflenet_v2_cifar",
    "gda.models.zoo.mobilenet_v1",
    "gda.models.zoo.convnet4",
    "gda.models.zoo.resnet_few_shot",
)

TIMM = "timm/"


def create_model(name: str, num_classes: int | None, **options: Any) -> nn.Module:
    """Builds a model with freshly initialised weights (drawn from torch's global generator).

    Args:
        name: A zoo name (see :func:`list_models`), or ``timm/<name>`` for any timm model.
        num_classes: Size of the output. ``None`` leaves the head out: the model is an encoder then, and
            maps images to features ``(batch, width)``.
        **options: Passed on to the model's builder (to ``timm.create_model`` for timm models).

    Returns:
        The model, on the CPU, in training mode. It maps ``(batch, 3, h, w)`` to logits
        ``(batch, num_classes)``.

    Raises:
        UserError: The name is unknown, or the model does not take one of the options.
    """
    builder = find_builder(name)
    # timm passes unknown options on to inner constructors; only the call itself can tell.
    if not name.startswith(TIMM):
        _check_options(name, builder, options)
    if num_classes is None and not name.startswith(TIMM) and not zoo()[name].encoder:
        return leave_out_head(builder(num_classes=2, **options))
    try:
        return builder(num_classes=num_classes, **options)
    except (TypeError, RuntimeError) as error:
        if name.startswith(TIMM):
            raise UserError(f"timm could not build {name!r} with options {options}: {error}") from error
        raise


def list_models() -> list[str]:
    """Returns the names of the zoo, sorted (timm's are not among them)."""
    return sorted(zoo())


def find_builder(name: str) -> Builder:
    """Looks a name up without building the model.

    Args:
        name: As in :func:`create_model`.

    Raises:
        UserError: The name is unknown; the message holds the nearest names and the list.
    """
    if name.startswith(TIMM):
        return _timm_builder(name)
    if name in zoo():
        return zoo()[name].build
    nearest = near(name, list_models())
    raise UserError(
        f"there is no model {name!r}. {_did_you_mean(nearest)}The zoo has: {', '.join(list_models())}; "
        f"and any timm model as {TIMM}<name>, e.g. {TIMM}resnet18.a1_in1k."
    )


@cache
def zoo() -> dict[str, ZooEntry]:
    """Returns the tables of all families, merged; builds nothing."""
    models: dict[str, ZooEntry] = {}
    for family in FAMILIES:
        table = importlib.import_module(family).MODELS
        twice = models.keys() & table.keys()
        if twice:
            raise RuntimeError(f"{family} defines names that another family has: {sorted(twice)}")
        models.update(table)
    return models


def _timm_builder(name: str) -> Builder:
    import timm  # slow to import, and most runs need none of it

    timm_name = name.removeprefix(TIMM)
    architecture, _, tag = timm_name.partition(".")
    if not timm.is_model(architecture):
        nearest = near(architecture, timm.list_models(), 5)
    elif tag and timm_name not in timm.list_pretrained(architecture):
        nearest = near(timm_name, timm.list_pretrained(architecture))
    else:
        return partial(_create_timm, timm_name)
    raise UserError(
        f"timm has no model {timm_name!r}. {_did_you_mean([TIMM + each for each in nearest])}"
        "timm.list_models() prints all of them."
    )


def _create_timm(timm_name: str, num_classes: int | None, **options: Any) -> nn.Module:
    import timm

    # timm's own "no head" is zero classes.
    model: Any = timm.create_model(timm_name, num_classes=num_classes or 2, **options)
    if num_classes is None:
        names = set(model.state_dict())
        model.reset_classifier(0)  # timm's own "no head"; some models have two, or a norm in theirs
        mark(model, names - set(model.state_dict()))
    return model


def _check_options(name: str, builder: Builder, options: dict[str, Any]) -> None:
    """Refuses options that the builder does not take, and names those that it does."""
    parameters = inspect.signature(builder).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return
    known = [each for each in parameters if each != "num_classes"]
    unknown = [each for each in options if each not in known]
    if unknown:
        nearest = [match for each in unknown for match in near(each, known, 1)]
        takes = f"It takes: {', '.join(known)}." if known else "It takes none."
        raise UserError(f"model {name!r} has no option {', '.join(unknown)}. {_did_you_mean(nearest)}{takes}")


def _did_you_mean(names: list[str]) -> str:
    return f"Did you mean {' or '.join(names)}? " if names else ""
