"""How alike features and class prototypes are: the metrics of few-shot learning.

All of them take features ``(..., n, width)`` and prototypes ``(..., classes, width)`` with the same
leading dimensions, such as episodes, and return ``(..., n, classes)``; larger means more alike. They compute
in float32 or better, also within autocast: in half precision near classes are equally near.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gda.errors import UserError
from gda.suggestions import did_you_mean

Metric = Callable[[Tensor, Tensor], Tensor]


def dot_product(features: Tensor, prototypes: Tensor) -> Tensor:
    """Returns the inner products."""
    with torch.autocast(features.device.type, enabled=False):
        return full_precision(features) @ full_precision(prototypes).mT


def full_precision(values: Tensor) -> Tensor:
    """Returns values in float32, or in what they have if that is more."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def cosine(features: Tensor, prototypes: Tensor) -> Tensor:
    """Returns the cosines of the angles, in [-1, 1]; a vector of zeros has cosine 0 with all others."""
    return dot_product(
        F.normalize(full_precision(features), dim=-1), F.normalize(full_precision(prototypes), dim=-1)
    )


def negative_squared_distance(features: Tensor, prototypes: Tensor) -> Tensor:
    """Returns minus the squared Euclidean distances, at most 0.

    The differences are formed one by one, in memory of ``n * classes * width``: the expansion into
    inner products would lose the digits of small distances.
    """
    return -(features.unsqueeze(-2) - prototypes.unsqueeze(-3)).pow(2).sum(dim=-1)


METRICS: dict[str, Metric] = {"cos": cosine, "sqr": negative_squared_distance}
"""The metrics by their published names."""


def find_metric(name: str) -> Metric:
    """Looks up a metric.

    Args:
        name: ``cos`` or ``sqr``.

    Raises:
        UserError: There is no such metric.
    """
    if name not in METRICS:
        raise UserError(
            f"there is no metric {name!r} of features and prototypes; {did_you_mean(name, METRICS)}."
        )
    return METRICS[name]
