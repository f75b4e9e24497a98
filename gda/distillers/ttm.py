r"""Transformed teacher matching: the student, not softened, matches a power of the teacher's probabilities.

Formula, for student logits ``s`` and teacher logits ``t``, both ``(B, C)``, exponent ``g``;
``p = softmax(s)``, ``q = softmax(t)``::

    U_i  = sum_c q_ic^g                                                      (B,)
    Q_ic = q_ic^g / U_i = softmax(g t_i)_c                                   (B, C)
    TTM  = 1/B sum_i     KL(Q_i || p_i)                                      (scalar, nats)
    WTTM = 1/B sum_i U_i KL(Q_i || p_i)                                      (scalar, nats)

An exponent ``g`` below 1 is a temperature ``1/g`` on the teacher's side only. The power sum ``U`` lies
between 1 and ``C^(1-g)``, and is the greater the smoother the teacher: WTTM weighs smooth samples
more. It makes WTTM many times larger than TTM (up to 63 times for 100 classes and exponent 0.1), so
that one weight does not do for both.

Source: Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024,
arXiv:2402.11148; repository zkxufo/TTM. Its README gives two runs, both VGG13 to VGG8 on CIFAR-100 with
cross entropy of weight 1: TTM with exponent 0.1 and weight 45, which are TTM's defaults here, and WTTM
with exponent 0.2 and weight 4, beside CRD of weight 0.8, which are WTTM's. The paper tunes both numbers
for every pair (its appendix A.4 lists them).
"""

from typing import Annotated

from torch import Tensor
from torch.nn import functional as F

from gda.distillers.logits import below_maximum, logit_pair
from gda.distillers.term import Term, TermInputs
from gda.ranges import Positive


def ttm_per_sample(student: Tensor, teacher: Tensor, exponent: float) -> Tensor:
    """Divergence of the student from the power-transformed teacher, of every sample.

    Args:
        student: Student logits, ``(batch, classes)``.
        teacher: Teacher logits, ``(batch, classes)``; no gradient flows into them.
        exponent: Power of the teacher's probabilities, above 0.

    Returns:
        Non-negative losses in nats, ``(batch,)``.

    Raises:
        ValueError: The shapes differ.
    """
    student, teacher = logit_pair(student, teacher)
    log_p = F.log_softmax(student, dim=1)
    log_q = F.log_softmax(below_maximum(teacher) * exponent, dim=1)
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim=1)


def ttm(student: Tensor, teacher: Tensor, exponent: float) -> Tensor:
    """Transformed teacher matching, mean over the batch.

    Args:
        student: Student logits, ``(batch, classes)``.
        teacher: Teacher logits, ``(batch, classes)``; no gradient flows into them.
        exponent: Power of the teacher's probabilities, above 0.

    Returns:
        Non-negative scalar in nats; zero where ``student - exponent * teacher`` is constant in each row.

    Raises:
        ValueError: The shapes differ.
    """
    return ttm_per_sample(student, teacher, exponent).mean()


def wttm(student: Tensor, teacher: Tensor, exponent: float) -> Tensor:
    """Weighted transformed teacher matching: smooth teacher predictions count more.

    Args:
        student: Student logits, ``(batch, classes)``.
        teacher: Teacher logits, ``(batch, classes)``; no gradient flows into them.
        exponent: Power of the teacher's probabilities, above 0.

    Returns:
        Non-negative scalar in nats; zero where ``student - exponent * teacher`` is constant in each row.

    Raises:
        ValueError: The shapes differ.
    """
    per_sample = ttm_per_sample(student, teacher, exponent)
    log_q = F.log_softmax(teacher.detach().to(per_sample.dtype), dim=1)
    power_sum = (log_q * exponent).exp().sum(dim=1)
    return (power_sum * per_sample).mean()


class TTM(Term):
    """Transformed teacher matching as a term.

    Args:
        exponent: Power of the teacher's probabilities.
    """

    sample_wise = True
    kind = "logit"
    paper = "2402.11148"

    def __init__(self, exponent: Annotated[float, Positive] = 0.1) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        return ttm(inputs.student.logits, inputs.teacher_logits, self.exponent)


class WTTM(Term):
    """Weighted transformed teacher matching as a term.

    Args:
        exponent: Power of the teacher's probabilities.
    """

    sample_wise = True
    kind = "logit"
    paper = "2402.11148"

    def __init__(self, exponent: Annotated[float, Positive] = 0.2) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        return wttm(inputs.student.logits, inputs.teacher_logits, self.exponent)
