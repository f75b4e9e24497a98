r"""Adaptive confidence: every sample decides how far the student trusts itself.

Formula, for student logits ``s`` and teacher logits ``t``, both ``(B, C)``, temperature ``T``,
confidence temperature ``tau`` and ramp factor ``r``::

    a_i       = r * sigmoid( (CE(s_i, argmax s_i) - CE(s_i, argmax t_i)) / tau )     (detached)
    AdaptConf = 1/B sum_i (1 - a_i) * KD_i(s, t; T) + a_i * CE(s_i, argmax s_i)      (scalar, nats)

``a_i`` is at most ``r / 2``: both cross entropies are equal where the predictions agree, and the
student's own prediction never has the greater one.

Source: Guo et al., "Vision Superalignment: Weak-to-Strong Generalization for Vision Foundation
Models", 2024, arXiv:2402.03749, code vision_weak_to_strong. That code divides two exponentials
``exp(CE / tau)``, which overflow for small ``tau``; the sigmoid of the difference is the same
number. Defaults: tau 0.5, T 1 from vision_weak_to_strong. Its few-shot code multiplies ``a`` by
``r = min(1, (epoch + 1) / (ramp * epochs))`` (epochs from 0) with ramp 0.25; elsewhere ``r`` is 1.
"""

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from gda.distillers.kd import kd_per_sample
from gda.distillers.logits import at_least_float32
from gda.distillers.term import Progress, Term, TermInputs
from gda.ranges import Positive, Share


def adapt_conf(student: Tensor, teacher: Tensor, tau: float, temperature: float, ramp: float = 1.0) -> Tensor:
    """Per-sample mixture of the distillation loss and the student's own prediction.

    Args:
        student: Student logits, ``(batch, classes)``.
        teacher: Teacher logits, ``(batch, classes)``; no gradient flows into them.
        tau: Temperature of the confidence, above 0; small values decide sharply.
        temperature: Temperature of the distillation loss, above 0.
        ramp: Factor on the confidence weight, between 0 and 1.

    Returns:
        Scalar in nats (batch mean).

    Raises:
        ValueError: The shapes differ.
    """
    distillation = kd_per_sample(student, teacher, temperature)
    logits = at_least_float32(student)
    confidence = F.cross_entropy(logits, logits.detach().argmax(dim=1), reduction="none")
    with torch.no_grad():
        disagreement = F.cross_entropy(logits, teacher.argmax(dim=1), reduction="none")
        weight = ramp * torch.sigmoid((confidence - disagreement) / tau)
    return ((1 - weight) * distillation + weight * confidence).mean()


class AdaptConf(Term):
    """Adaptive confidence as a term.

    Args:
        tau: Temperature of the confidence.
        temperature: Temperature of the distillation loss.
        ramp: Share of training over which the confidence weight rises linearly, its first epoch
            above 0; 0 means no ramp.
    """

    kind = "logit"
    paper = "2402.03749"

    def __init__(
        self,
        tau: Annotated[float, Positive] = 0.5,
        temperature: Annotated[float, Positive] = 1.0,
        ramp: Annotated[float, Share] = 0.0,
    ) -> None:
        super().__init__()
        self.tau = tau
        self.temperature = temperature
        self.ramp = ramp

    def ramp_factor(self, progress: Progress) -> float:
        """Factor on the confidence weight in the current epoch, in ``(0, 1]``."""
        ramp_epochs = self.ramp * progress.epochs
        if ramp_epochs == 0:
            return 1.0
        return min(1.0, (progress.epoch + 1) / ramp_epochs)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        return adapt_conf(
            inputs.student.logits,
            inputs.teacher_logits,
            self.tau,
            self.temperature,
            self.ramp_factor(inputs.progress),
        )
