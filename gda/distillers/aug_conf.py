r"""Augmented confidence: the student is trained on its own hard predictions more and more.

Formula, for student logits ``s`` and teacher logits ``t``, both ``(B, C)``, confidence share ``a``
and temperature ``T``::

    AugConf = (1 - a) * KD(s, t; T) + a * 1/B sum_i CE(s_i, argmax s_i)       (scalar, nats)
    a       = alpha_max * min(1, epoch / (ramp * epochs))                     (epoch from 0)

The prediction ``argmax s`` is a target, without gradient; its cross entropy has temperature 1.

Source: the auxiliary confidence loss of Burns et al., "Weak-to-Strong Generalization", 2023,
arXiv:2312.09390, as vision_weak_to_strong uses it (Guo et al., "Vision Superalignment:
Weak-to-Strong Generalization for Vision Foundation Models", 2024, arXiv:2402.03749). Defaults:
alpha_max 0.5, ramp 0.3, T 1 from vision_weak_to_strong (its few-shot code ramps over 0.25).
"""

from typing import Annotated

from torch import Tensor
from torch.nn import functional as F

from gda.distillers.kd import kd
from gda.distillers.logits import at_least_float32
from gda.distillers.term import Progress, Term, TermInputs
from gda.ranges import Positive, Share


def aug_conf(student: Tensor, teacher: Tensor, alpha: float, temperature: float) -> Tensor:
    """Mixture of the distillation loss and the cross entropy with the student's own prediction.

    Args:
        student: Student logits, ``(batch, classes)``.
        teacher: Teacher logits, ``(batch, classes)``; no gradient flows into them.
        alpha: Share of the confidence loss, between 0 and 1.
        temperature: Temperature of the distillation loss, above 0.

    Returns:
        Scalar in nats (batch mean).

    Raises:
        ValueError: The shapes differ.
    """
    distillation = kd(student, teacher, temperature)
    confidence = F.cross_entropy(at_least_float32(student), student.detach().argmax(dim=1))
    return (1 - alpha) * distillation + alpha * confidence


class AugConf(Term):
    """Augmented confidence as a term, with its ramp.

    Args:
        alpha_max: Share of the confidence loss after the ramp.
        ramp: Share of training over which it rises linearly from 0; 0 means at once.
        temperature: Temperature of the distillation loss.
    """

    kind = "logit"
    paper = "2402.03749"

    def __init__(
        self,
        alpha_max: Annotated[float, Share] = 0.5,
        ramp: Annotated[float, Share] = 0.3,
        temperature: Annotated[float, Positive] = 1.0,
    ) -> None:
        super().__init__()
        self.alpha_max = alpha_max
        self.ramp = ramp
        self.temperature = temperature

    def alpha(self, progress: Progress) -> float:
        """Share of the confidence loss in the current epoch; 0 in the first one if there is a ramp."""
        ramp_epochs = self.ramp * progress.epochs
        if ramp_epochs == 0:
            return self.alpha_max
        return self.alpha_max * min(1.0, progress.epoch / ramp_epochs)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        return aug_conf(
            inputs.student.logits, inputs.teacher_logits, self.alpha(inputs.progress), self.temperature
        )
