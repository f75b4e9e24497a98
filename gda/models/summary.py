"""What there is to know of a model before it is used: size, work, and where its features are."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gda.errors import UserError
from gda.models.cost import measure_cost
from gda.models.dry_run import SkipInit
from gda.models.layout import layout_of
from gda.models.registry import TIMM, create_model, find_builder, zoo
from gda.models.tap_descriptions import TapDescription, describe

CLASSES = 100
IMAGENET_CLASSES = 1000
IMAGENET_SIZE = 224


@dataclass(frozen=True)
class TopModule:
    """A direct child of a model.

    Attributes:
        path: Its name in the model, which is also its path for taps.
        kind: Name of its class.
        parameters: Number of its parameters.
    """

    path: str
    kind: str
    parameters: int


@dataclass(frozen=True)
class ModelSummary:
    """A model at one image size.

    Attributes:
        name: As in :func:`gda.models.create_model`.
        parameters: Number of parameters (see :class:`gda.models.cost.Cost`).
        macs: Multiply-accumulate operations for one image (see :class:`gda.models.cost.Cost`).
        image_size: Height and width in pixels.
        classes: Size of the output.
        taps: The taps that hold for every model, as far as this one has them, by name.
        modules: Its top-level modules, in the order of the model.
    """

    name: str
    parameters: int
    macs: int
    image_size: int
    classes: int
    taps: Mapping[str, TapDescription]
    modules: tuple[TopModule, ...]


def summarise(name: str, classes: int | None = None, image_size: int | None = None) -> ModelSummary:
    """Builds a model without its values and looks at it by dry forward passes.

    Args:
        name: A zoo name, or ``timm/<name>``.
        classes: Size of the output; by default 1,000 for timm models and those made for images of 224
            pixels or more, and 100 for the others.
        image_size: Height and width in pixels; by default what the model was published for.

    Raises:
        UserError: The name is unknown, or the model can't take images of this size.
    """
    builder = find_builder(name)
    size = image_size if name.startswith(TIMM) else image_size or zoo()[name].image_size
    if classes is None:
        published_for = IMAGENET_SIZE if name.startswith(TIMM) else zoo()[name].image_size
        classes = CLASSES if published_for < IMAGENET_SIZE else IMAGENET_CLASSES
    # Few models are built for one image size; the others take any.
    options = {"image_size": size} if "image_size" in inspect.signature(builder).parameters else {}
    with torch.device("meta") if name.startswith(TIMM) else SkipInit():
        model = create_model(name, classes, **options)
    if size is None:
        size = _timm_image_size(model)
    try:
        cost = measure_cost(model, size)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    modules = tuple(
        TopModule(path, type(child).__name__, sum(p.numel() for p in child.parameters()))
        for path, child in model.named_children()
    )
    return ModelSummary(name, cost.parameters, cost.macs, size, classes, _taps(model, size), modules)


def _timm_image_size(model: Any) -> int:
    height, width = model.pretrained_cfg["input_size"][1:]
    return int(max(height, width))


def _taps(model: nn.Module, image_size: int) -> dict[str, TapDescription]:
    names = list(layout_of(model).names())
    try:
        return describe(model, names, image_size)
    except UserError:
        pass  # a few timm models list modules that they never call: take what can be tapped
    described: dict[str, TapDescription] = {}
    for name in names:
        try:
            described |= describe(model, [name], image_size)
        except UserError:
            continue
    return described
