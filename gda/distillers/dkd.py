r"""Decoupled knowledge distillation: the target class and the other classes, weighted apart.

Formula, for student logits ``s`` and teacher logits ``t``, both ``(B, C)``, target class ``y``
``(B,)`` and temperature ``T``; ``p = softmax(s / T)``, ``q = softmax(t / T)``::

    TCKD = 1/B sum_i KL( (q_y, 1 - q_y) || (p_y, 1 - p_y) )
    NCKD = 1/B sum_i KL( q over classes other than y || p over classes other than y ), each
           renormalised to 1
    DKD  = T^2 * (alpha * TCKD + beta * NCKD)                              (scalar, nats)

Source: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022,
arXiv:2203.08679, equation 7. Defaults: alpha 1, beta 8, T 4 from mdistiller's CIFAR-100 files (beta
is 2 there for ResNet56 and ResNet110 teachers, 6 for VGG and WRN); the linear warm-up over 20
epochs is the term's weight, see :mod:`gda.distillers.schedule`.

Everything stays in log space: with ``m`` the log-sum-exp of the other classes,
``log p_y = logsigmoid(s_y/T - m)`` and ``log(1 - p_y) = logsigmoid(m - s_y/T)``. Hence the loss is
finite where a probability underflows, and for two classes, where NCKD is 0.
"""

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from gda.distillers.logits import below_maximum, logit_pair, squared
from gda.distillers.term import Term, TermInputs
from gda.ranges import NonNegative, Positive


def _split(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Splits ``(B, C)`` logits into the target's ``(B,)`` and all others ``(B, C - 1)``."""
    classes = logits.shape[1]
    column = target.unsqueeze(1)
    others = torch.arange(classes - 1, device=logits.device).unsqueeze(0)
    # Columns before the target keep their number, those behind it move up by one.
    others = others + (others >= column).to(others.dtype)
    return logits.gather(1, column).squeeze(1), logits.gather(1, others)


def dkd_parts(
    student: Tensor, teacher: Tensor, target: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """The two summands of DKD, each with its factor ``T^2``, unweighted.

    Args:
        student: Student logits, ``(batch, classes)``, at least two classes.
        teacher: Teacher logits, ``(batch, classes)``; no gradient flows into them.
        target: Class ids, ``(batch,)``, or class probabilities, ``(batch, classes)``, of which the
            most probable class is taken.
        temperature: Softening of all distributions, above 0: a number, or a tensor that broadcasts to
            ``(batch, 1)`` and may have a gradient.

    Returns:
        The target part and the non-target part, two scalars in nats (batch means).

    Raises:
        ValueError: The shapes differ, or there are fewer than two classes.
    """
    student, teacher = logit_pair(student, teacher)
    if student.shape[1] < 2:
        raise ValueError("dkd needs at least two classes: there is nothing beside the target class")
    if target.dim() == 2:
        target = target.argmax(dim=1)

    # The maximum goes before the division, which would round the digits that matter away.
    student_target, student_others = _split(below_maximum(student) / temperature, target)
    teacher_target, teacher_others = _split(below_maximum(teacher) / temperature, target)

    # Log-odds of the target class against all others together.
    student_odds = student_target - student_others.logsumexp(dim=1)
    teacher_odds = teacher_target - teacher_others.logsumexp(dim=1)
    log_p = F.logsigmoid(torch.stack([student_odds, -student_odds], dim=1))
    log_q = F.logsigmoid(torch.stack([teacher_odds, -teacher_odds], dim=1))
    target_part = F.kl_div(log_p, log_q, reduction="none", log_target=True)
    nontarget_part = F.kl_div(
        F.log_softmax(student_others, dim=1),
        F.log_softmax(teacher_others, dim=1),
        reduction="none",
        log_target=True,
    )
    factor = squared(temperature)
    return (target_part.sum(dim=1) * factor).mean(), (nontarget_part.sum(dim=1) * factor).mean()


def dkd(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature: float | Tensor,
) -> Tensor:
    """Decoupled distillation loss, ``alpha * target part + beta * non-target part``.

    Args:
        student: Student logits, ``(batch, classes)``, at least two classes.
        teacher: Teacher logits, ``(batch, classes)``; no gradient flows into them.
        target: Class ids, ``(batch,)``, or class probabilities, ``(batch, classes)``, of which the
            most probable class is taken (mixed labels; the teacher's in label-free training).
        alpha: Weight of the target part, at least 0.
        beta: Weight of the non-target part, at least 0.
        temperature: Softening of all distributions, above 0: a number, or a tensor that broadcasts to
            ``(batch, 1)`` and may have a gradient.

    Returns:
        Scalar in nats (batch mean).

    Raises:
        ValueError: The shapes differ, or there are fewer than two classes.
    """
    target_part, nontarget_part = dkd_parts(student, teacher, target, temperature)
    return alpha * target_part + beta * nontarget_part


class DKD(Term):
    """Decoupled distillation as a term.

    Args:
        alpha: Weight of the target part.
        beta: Weight of the non-target part.
        temperature: Softening of all distributions.
    """

    takes_plugins = True
    sample_wise = True
    kind = "logit"
    paper = "2203.08679"

    def __init__(
        self,
        alpha: Annotated[float, NonNegative] = 1.0,
        beta: Annotated[float, NonNegative] = 8.0,
        temperature: Annotated[float, Positive] = 4.0,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        return dkd(
            inputs.student.logits,
            inputs.teacher_logits,
            inputs.targets,
            self.alpha,
            self.beta,
            inputs.temperature_or(self.temperature),
        )
