"""Meta-Baseline: queries are classified by their similarity to the mean features of the shots.

Chen et al., arXiv 2003.04390. With encoder ``f``, shots ``S_c`` of class ``c`` and a
temperature ``tau`` (it multiplies, as published: larger is sharper)::

    w_c     = mean over x in S_c of f(x)
    logit_c = tau * cos(f(query), w_c)                    metric cos
    logit_c = -tau * ||f(query) - w_c||^2                 metric sqr

The raw features are averaged; only their mean is normalised.
"""

import torch
from torch import Tensor, nn

from gda.errors import UserError
from gda.models.layout import Layout
from gda.models.zoo.similarity import find_metric, full_precision


class MetaBaseline(nn.Module):
    """A few-shot classifier around an encoder; a state dictionary holds ``temp`` and ``encoder.*``.

    Args:
        encoder: Maps images ``(batch, channels, h, w)`` to features ``(batch, width)``.
        metric: ``cos`` or ``sqr``.
        temperature: Factor of the similarities, above 0, at the start.
        learnable_temperature: Whether it is a parameter ``temp``; else it is no part of the weights.

    Raises:
        UserError: There is no such metric, or the temperature is not above 0.
    """

    def __init__(
        self,
        encoder: nn.Module,
        metric: str = "cos",
        temperature: float = 10.0,
        learnable_temperature: bool = True,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise UserError(f"the temperature of the similarities must be above 0, not {temperature}")
        self.similarity = find_metric(metric)
        self.encoder = encoder
        self.temp: Tensor | float = temperature
        if learnable_temperature:
            self.temp = nn.Parameter(torch.tensor(float(temperature)))
        layout = getattr(encoder, "layout", None)
        if isinstance(layout, Layout):
            self.layout = layout.within("encoder")

    def forward(self, shots: Tensor, queries: Tensor) -> Tensor:
        """Classifies the queries of some episodes.

        Shots and queries go through the encoder as one batch, the shots of all episodes first, so that
        in training they are normalised by the same statistics, taken over all of them.

        Args:
            shots: Images ``(episodes, way, shot, channels, h, w)``.
            queries: Images ``(episodes, queries, channels, h, w)``, of the same size.

        Returns:
            Logits ``(episodes, queries, way)``.

        Raises:
            UserError: The shapes are not of this kind, or do not go together.
        """
        alike = shots.shape[:1] == queries.shape[:1] and shots.shape[3:] == queries.shape[2:]
        if shots.ndim != 6 or queries.ndim != 5 or not alike:
            raise UserError(
                "an episode batch is shots (episodes, way, shot, channels, h, w) and queries (episodes, "
                f"queries, channels, h, w), not {tuple(shots.shape)} and {tuple(queries.shape)}"
            )
        features = self.encoder(torch.cat([shots.flatten(0, 2), queries.flatten(0, 1)]))
        of_shots, of_queries = features.split([shots.shape[:3].numel(), queries.shape[:2].numel()])
        return self.classify(
            of_shots.unflatten(0, shots.shape[:3]), of_queries.unflatten(0, queries.shape[:2])
        )

    def classify(self, shot_features: Tensor, query_features: Tensor) -> Tensor:
        """Classifies queries whose features are known already.

        Args:
            shot_features: ``(episodes, way, shot, width)``.
            query_features: ``(episodes, queries, width)``.

        Returns:
            Logits ``(episodes, queries, way)``.
        """
        means = full_precision(shot_features).mean(dim=-2)
        return self.similarity(query_features, means) * self.temp
