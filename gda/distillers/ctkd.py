r"""Curriculum temperature: the student learns the temperature along, against its own interest.

Formula, for a learned number ``g`` and the logit loss ``L`` that it softens::

    T = T_start + T_range * sigmoid(g)
    CTKD[L](s, t) = L(s, t; T)
    dCTKD/dg is multiplied by lambda(e) = -(1 - cos(pi * min(e, E) / E)) / 2,  epoch e from 1

so that the gradient of ``g`` is reversed: from no effect it goes over ``E`` epochs to raising the loss
as fast as the student lowers it.

Source: Li, Li, Yang, Zhao, Song, Luo, Li, Yang, "Curriculum Temperature for Knowledge Distillation",
AAAI 2023, arXiv:2211.16231 (its global temperature). Defaults from its code: ``T_start``
1, ``T_range`` 20, ``g`` starts at 1, cosine from 0 to -1 over ``E = 10`` epochs. ``g`` is trained by the
run's optimiser, weight decay included, as there.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from gda.distillers.plugin import Plugin
from gda.distillers.term import Progress, TermInputs
from gda.ranges import NonNegative, Positive, Range


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


class CurriculumTemperature(Plugin):
    """Gives a logit loss a temperature that is learned adversarially.

    Args:
        start: Temperature that it stays above.
        span: How far above it may rise.
        epochs: Epochs until the reversed gradient has its full size.

    Attributes:
        raw_temperature: The learned number ``g``, ``(1,)``.
    """

    paper = "2211.16231"

    def __init__(
        self,
        start: Annotated[float, NonNegative] = 1.0,
        span: Annotated[float, Positive] = 20.0,
        epochs: Annotated[int, Range(minimum=1)] = 10,
    ) -> None:
        super().__init__()
        self.start, self.span, self.epochs = start, span, epochs
        self.raw_temperature = nn.Parameter(torch.ones(1))

    def reversal(self, progress: Progress) -> float:
        """Factor on the gradient of the learned number in the current epoch, in ``[-1, 0)``."""
        epoch = min(progress.epoch + 1, self.epochs)
        return -(1 - math.cos(math.pi * epoch / self.epochs)) / 2

    def forward(self, term: Callable[[TermInputs], Tensor], inputs: TermInputs) -> Tensor:
        """Returns the term's loss at the learned temperature."""
        raw = _ScaledGradient.apply(self.raw_temperature, self.reversal(inputs.progress))
        temperature = self.start + self.span * torch.sigmoid(raw)
        return term(replace(inputs, temperature=temperature.unsqueeze(1)))
