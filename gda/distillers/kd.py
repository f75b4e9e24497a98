r"""Knowledge distillation: match the teacher's softened class probabilities.

Formula, for student logits ``s`` and teacher logits ``t``, both ``(B, C)``, temperature ``T``::

    KD = T^2 / B * sum_i KL( softmax(t_i / T) || softmax(s_i / T) )        (scalar, nats)

Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
arXiv:1503.02531, section 2 (the factor ``T^2`` keeps the gradient's scale as ``T`` changes).
Default: ``T = 4`` as in RepDistiller and mdistiller for CIFAR-100.
"""

from typing import Annotated

from torch import Tensor
from torch.nn import functional as F

from gda.distillers.logits import below_maximum, logit_pair, squared
from gda.distillers.term import Term, TermInputs
from gda.ranges import Positive


def kd_per_sample(student: Tensor, teacher: Tensor, temperature: float | Tensor) -> Tensor:
    """``T^2 * KL(teacher || student)`` of every sample.

    Args:
        student: Student logits, ``(batch, classes)``.
        teacher: Teacher logits, ``(batch, classes)``; no gradient flows into them.
        temperature: Softening of both distributions, above 0: a number, or a tensor that broadcasts to
            ``(batch, 1)`` and may have a gradient.

    Returns:
        Non-negative losses in nats, ``(batch,)``.

    Raises:
        ValueError: The shapes differ.
    """
    student, teacher = logit_pair(student, teacher)
    # The maximum goes before the division, which would round the digits that matter away.
    log_p = F.log_softmax(below_maximum(student) / temperature, dim=1)
    log_q = F.log_softmax(below_maximum(teacher) / temperature, dim=1)
    # log_target: a teacher probability that underflows to 0 contributes 0, never 0 * log 0.
    divergence = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim=1)
    return divergence * squared(temperature)


def kd(student: Tensor, teacher: Tensor, temperature: float | Tensor) -> Tensor:
    """Hinton's distillation loss, ``T^2 * KL(teacher || student)``, mean over the batch.

    Args:
        student: Student logits, ``(batch, classes)``.
        teacher: Teacher logits, ``(batch, classes)``; no gradient flows into them.
        temperature: Softening of both distributions, above 0: a number, or a tensor that broadcasts to
            ``(batch, 1)`` and may have a gradient.

    Returns:
        Scalar in nats, zero exactly where both distributions agree.

    Raises:
        ValueError: The shapes differ.
    """
    return kd_per_sample(student, teacher, temperature).mean()


class KD(Term):
    """Hinton's distillation loss as a term.

    Args:
        temperature: Softening of both distributions.
    """

    takes_plugins = True
    sample_wise = True
    kind = "logit"
    paper = "1503.02531"

    def __init__(self, temperature: Annotated[float, Positive] = 4.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        return kd(inputs.student.logits, inputs.teacher_logits, inputs.temperature_or(self.temperature))
