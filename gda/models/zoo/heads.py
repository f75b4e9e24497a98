"""Heads that turn an encoder's features into logits: linear, cosine classifier, nearest prototype.

Parameter names and initial values equal those of few-shot-meta-baseline ("linear-classifier" and
"nn-classifier"), so its published weights load.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from gda.models.zoo.similarity import find_metric


class LinearHead(nn.Module):
    """A linear layer with bias.

    Args:
        in_features: Width of the features.
        num_classes: Size of the output.
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.linear = nn.Linear(in_features, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``(batch, in_features)`` to logits ``(batch, num_classes)``."""
        return self.linear(features)


class NearestPrototypeHead(nn.Module):
    """One learned prototype per class; a logit is the temperature times the similarity to it.

    With metric ``cos`` this is the cosine classifier (Gidaris and Komodakis, arXiv 1804.09458; Chen
    et al., arXiv 1904.04232, "Baseline++"). The temperature multiplies, as published: larger is sharper.

    Args:
        in_features: Width of the features.
        num_classes: Size of the output.
        metric: ``cos`` (cosine) or ``sqr`` (minus the squared distance).
        temperature: A fixed factor of the similarities. ``None`` means a learned one that starts at 10
            for ``cos``, and 1 for ``sqr``.

    Raises:
        UserError: There is no such metric.
    """

    def __init__(
        self, in_features: int, num_classes: int, metric: str = "cos", temperature: float | None = None
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.similarity = find_metric(metric)
        self.proto = nn.Parameter(torch.empty(num_classes, in_features))
        nn.init.kaiming_uniform_(self.proto, a=math.sqrt(5))  # as torch fills linear layers
        self.temp: Tensor | float
        if temperature is None and metric == "cos":
            self.temp = nn.Parameter(torch.tensor(10.0))
        else:
            self.temp = 1.0 if temperature is None else temperature

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``(batch, in_features)`` to logits ``(batch, num_classes)``."""
        return self.similarity(features, self.proto) * self.temp


Head = LinearHead | NearestPrototypeHead

HEADS: dict[str, Callable[[int, int], Head]] = {
    "linear": LinearHead,
    "cosine": partial(NearestPrototypeHead, metric="cos"),
    "squared_euclidean": partial(NearestPrototypeHead, metric="sqr"),
}
"""Heads by name, each built from the width of the features and the number of classes."""
