r"""Normalised knowledge distillation: the target class, and the other classes as a distribution of their own.

Formula, for student logits ``s`` and teacher logits ``t``, both ``(B, C)``, target class ``y``
``(B,)`` and temperature ``T``; ``p = softmax(s)``, ``q = softmax(t)``, and ``P``, ``Q`` the softmaxes
of ``s / T`` and ``t / T`` over the classes other than ``y``::

    target = -1/B sum_i q_iy log p_iy
    others = -T^2/B sum_i sum_(c != y) Q_ic log P_ic
    NKD    = target + gamma * others                                         (scalar, nats)

Both parts are cross entropies, not divergences: they are not 0 where student and teacher agree, and
the gradient of ``others`` is. Where the targets are probabilities (mixed labels; the teacher's in
label-free training) ``y`` is the most probable class, as in the published code.

Source: Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge Distillation: A
Unified Approach with Normalized Loss and Customized Soft Labels", ICCV 2023, arXiv:2303.13005.
Defaults: gamma 1.5, T 1 as in cls_KD (repository yzd-v/cls_KD), whose one CIFAR-100 file, ResNet34 to
ResNet18, has gamma 3.5 and T 3.
"""

from typing import Annotated

from torch import Tensor
from torch.nn import functional as F

from gda.distillers.logits import below_maximum, logit_pair
from gda.distillers.term import Term, TermInputs
from gda.ranges import NonNegative, Positive


def class_column(target: Tensor) -> Tensor:
    """Returns the target classes as a column, ``(batch, 1)``.

    Args:
        target: Class ids, ``(batch,)``, or class probabilities, ``(batch, classes)``, of which the
            most probable class is taken.
    """
    return (target.argmax(dim=1) if target.dim() == 2 else target).unsqueeze(1)


def without_target(logits: Tensor, column: Tensor) -> Tensor:
    """Puts minus infinity in the target's place, and takes the maximum of the other classes off.

    Args:
        logits: ``(batch, classes)``, at least two classes.
        column: Target classes, ``(batch, 1)``.
    """
    # Their own maximum, before any division: beside a large target's their differences would be rounded.
    return below_maximum(logits.scatter(1, column, float("-inf")))


def target_cross_entropy(student: Tensor, teacher: Tensor, column: Tensor) -> Tensor:
    """Cross entropy of the target class alone, weighted by the teacher's confidence in it.

    Args:
        student: Student logits, ``(batch, classes)``.
        teacher: Teacher logits, ``(batch, classes)``, detached.
        column: Target classes, ``(batch, 1)``.

    Returns:
        Non-negative scalar in nats (batch mean).
    """
    log_p = F.log_softmax(student, dim=1).gather(1, column)
    q = teacher.softmax(dim=1).gather(1, column)
    return -(q * log_p).mean()


def nkd_parts(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The two summands of NKD, unweighted; the second with its factor ``T^2``.

    Args:
        student: Student logits, ``(batch, classes)``, at least two classes.
        teacher: Teacher logits, ``(batch, classes)``; no gradient flows into them.
        target: Class ids, ``(batch,)``, or class probabilities, ``(batch, classes)``, of which the
            most probable class is taken.
        temperature: Softening of the distributions over the other classes, above 0.

    Returns:
        The part of the target class and the part of all others, two non-negative scalars in nats.

    Raises:
        ValueError: The shapes differ, or there are fewer than two classes.
    """
    student, teacher = logit_pair(student, teacher)
    if student.shape[1] < 2:
        raise ValueError("nkd needs at least two classes: there is nothing beside the target class")
    column = class_column(target)
    q = (without_target(teacher, column) / temperature).softmax(dim=1)
    log_p = F.log_softmax(without_target(student, column) / temperature, dim=1)
    # The target's place holds 0 * minus infinity, which is no number.
    log_p = log_p.scatter(1, column, 0.0)
    others = -(temperature**2) * (q * log_p).sum(dim=1).mean()
    return target_cross_entropy(student, teacher, column), others


def nkd(student: Tensor, teacher: Tensor, target: Tensor, gamma: float, temperature: float) -> Tensor:
    """Normalised distillation loss, ``target part + gamma * part of the other classes``.

    Args:
        student: Student logits, ``(batch, classes)``, at least two classes.
        teacher: Teacher logits, ``(batch, classes)``; no gradient flows into them.
        target: Class ids, ``(batch,)``, or class probabilities, ``(batch, classes)``, of which the
            most probable class is taken.
        gamma: Weight of the other classes, at least 0.
        temperature: Softening of the distributions over the other classes, above 0.

    Returns:
        Non-negative scalar in nats (batch mean).

    Raises:
        ValueError: The shapes differ, or there are fewer than two classes.
    """
    target_part, others = nkd_parts(student, teacher, target, temperature)
    return target_part + gamma * others


class NKD(Term):
    """Normalised distillation as a term.

    Args:
        gamma: Weight of the other classes.
        temperature: Softening of the distributions over the other classes.
    """

    sample_wise = True
    kind = "logit"
    paper = "2303.13005"

    def __init__(
        self, gamma: Annotated[float, NonNegative] = 1.5, temperature: Annotated[float, Positive] = 1.0
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.temperature = temperature

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        return nkd(inputs.student.logits, inputs.teacher_logits, inputs.targets, self.gamma, self.temperature)
