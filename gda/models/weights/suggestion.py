"""Finds the model that weights belong to, by the names and shapes of their parameters."""

from collections.abc import Iterator, Mapping
from functools import cache

import torch
from torch import Tensor

from gda.models.dry_run import SkipInit
from gda.models.registry import TIMM, create_model, list_models
from gda.models.weights.mismatch import OPTIONAL
from gda.models.weights.state_names import ENCODER
from gda.models.weights.weight_files import printable

_CLASSES = 7919  # a prime that is no width of any network, so that it shows where the classes are

Shapes = Mapping[str, tuple[int, ...]]


def suggest(state: Mapping[str, Tensor], architecture: str | None = None) -> str | None:
    """Names the models that weights fit.

    All models of the zoo are compared, and the timm model that the file names, if it names one. The first
    time this takes some seconds, so it is for error messages.

    Args:
        state: Weights by name.
        architecture: What the file says of its architecture.

    Returns:
        Such as ``these weights fit resnet32x4 with 100 classes``; ``None`` when nothing fits.
    """
    shapes = {key: tuple(value.shape) for key, value in state.items() if not key.endswith(OPTIONAL)}
    encoder = {key.removeprefix(ENCODER): shape for key, shape in shapes.items() if key.startswith(ENCODER)}
    fitting: dict[str, list[str]] = {}
    for name in (*list_models(), *_timm_names(architecture)):
        kind = _fits(name, shapes) or _fits(name, encoder)
        if kind is not None:
            fitting.setdefault(kind, []).append(name)
    if fitting:
        texts = [f"{' or '.join(names[:3])} {kind}" for kind, names in fitting.items()]
        return f"these weights fit {' or '.join(texts)}"
    return None if architecture is None else f"the file calls its architecture {printable(architecture)}"


def _timm_names(architecture: str | None) -> list[str]:
    if architecture is None or architecture in list_models():
        return []
    import timm  # slow to import

    return [TIMM + architecture] if timm.is_model(architecture) else []


def _fits(name: str, shapes: Shapes) -> str | None:
    """Says how many classes a model has when it has these shapes; ``None`` when it never has."""
    for skeleton in _skeletons(name):
        counts = _class_counts(skeleton, shapes)
        if counts is not None and len(counts) <= 1:
            return f"with {counts.pop()} classes" if counts else "without a head"
    return None


def _class_counts(skeleton: Shapes, shapes: Shapes) -> set[int] | None:
    """Reads the lengths where the skeleton has its placeholder; ``None`` when other lengths differ."""
    if skeleton.keys() != shapes.keys():
        return None
    counts = set()
    for key, wanted in skeleton.items():
        given = shapes[key]
        if len(given) != len(wanted):
            return None
        counts |= {length for length, expected in zip(given, wanted, strict=True) if expected == _CLASSES}
        if any(expected not in (_CLASSES, length) for length, expected in zip(given, wanted, strict=True)):
            return None
    return counts


@cache
def _skeletons(name: str) -> tuple[Shapes, ...]:
    """Returns the shapes of a model with a head, and of one without where it can be had."""
    return tuple(_skeleton(name))


def _skeleton(name: str) -> Iterator[Shapes]:
    for classes in (_CLASSES, None):
        try:
            # Nothing is drawn from the random generator.
            with torch.device("meta") if name.startswith(TIMM) else SkipInit():
                model = create_model(name, classes)
        except (
            Exception
        ):  # no model without a head, or a timm name that a foreign file made up: no suggestion
            continue
        yield {
            key: tuple(value.shape) for key, value in model.state_dict().items() if not key.endswith(OPTIONAL)
        }
