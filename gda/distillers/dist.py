r"""DIST: match how predictions vary, over the classes of a sample and over the samples of a class.

Formula, for student logits ``s`` and teacher logits ``t``, both ``(B, C)``, temperature ``T``;
``p = softmax(s / T)``, ``q = softmax(t / T)``, and ``r`` Pearson's correlation::

    r(a, b) = <a', b'> / (|a'| |b'| + 1e-8),    a' = a - mean(a),  b' = b - mean(b)
    inter   = T^2 * (1 - 1/B sum_i r(p_i:, q_i:))            over the classes of each sample
    intra   = T^2 * (1 - 1/C sum_c r(p_:c, q_:c))            over the samples of each class
    DIST    = beta * inter + gamma * intra                                   (scalar)

``1 - r`` does not see the scale and the level of a row or of a column. The constant in the
denominator, the published code's, counts where both norms are about 1e-4 or less: such a column is
taken for less correlated than it is, and a constant one for uncorrelated. Hence ``r`` is defined and
its gradient finite for constant rows and columns, and for a batch of one image; the gradient of a
constant row is large, up to ``1e8 |b'|`` with respect to ``a``.

Source: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022,
arXiv:2205.10536; repository hunto/DIST_KD, whose factor ``T^2`` and constant these are. Defaults: T 4,
beta 1, gamma 1 and weight 2 beside the cross entropy, as in its CIFAR-100 file; T is 1 in its ImageNet
files.
"""

from typing import Annotated

import torch
from torch import Tensor

from gda.distillers.logits import below_maximum, logit_pair
from gda.distillers.term import Term, TermInputs
from gda.ranges import NonNegative, Positive

SMALLEST_NORMS = 1e-8


def correlation(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along one dimension of two matrices.

    Args:
        student: ``(rows, columns)``.
        teacher: The same shape.
        dim: The dimension to correlate along: 1 for one value per row, 0 for one per column.

    Returns:
        Values in ``[-1, 1]``, ``(rows,)`` or ``(columns,)``; 0 where either is constant.
    """
    a = student - student.mean(dim=dim, keepdim=True)
    b = teacher - teacher.mean(dim=dim, keepdim=True)
    norms = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    return (a * b).sum(dim=dim) / (norms + SMALLEST_NORMS)


def dist_parts(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The inter-class and the intra-class part of DIST, each with its factor ``T^2``, unweighted.

    Args:
        student: Student logits, ``(batch, classes)``.
        teacher: Teacher logits, ``(batch, classes)``; no gradient flows into them.
        temperature: Softening of both distributions, above 0.

    Returns:
        The part over the classes of a sample and the part over the samples of a class, two scalars
        between 0 and ``2 T^2``.

    Raises:
        ValueError: The shapes differ.
    """
    student, teacher = logit_pair(student, teacher)
    p = (below_maximum(student) / temperature).softmax(dim=1)
    q = (below_maximum(teacher) / temperature).softmax(dim=1)
    inter = 1 - correlation(p, q, dim=1).mean()
    intra = 1 - correlation(p, q, dim=0).mean()
    return temperature**2 * inter, temperature**2 * intra


def dist(student: Tensor, teacher: Tensor, beta: float, gamma: float, temperature: float) -> Tensor:
    """DIST loss, ``beta * inter-class part + gamma * intra-class part``.

    Args:
        student: Student logits, ``(batch, classes)``.
        teacher: Teacher logits, ``(batch, classes)``; no gradient flows into them.
        beta: Weight of the part over the classes of a sample, at least 0.
        gamma: Weight of the part over the samples of a class, at least 0.
        temperature: Softening of both distributions, above 0.

    Returns:
        Non-negative scalar; about 0 where both predictions agree and vary.

    Raises:
        ValueError: The shapes differ.
    """
    inter, intra = dist_parts(student, teacher, temperature)
    return beta * inter + gamma * intra


class DIST(Term):
    """DIST as a term.

    Args:
        beta: Weight of the part over the classes of a sample.
        gamma: Weight of the part over the samples of a class.
        temperature: Softening of both distributions.
    """

    kind = "logit"
    paper = "2205.10536"

    def __init__(
        self,
        beta: Annotated[float, NonNegative] = 1.0,
        gamma: Annotated[float, NonNegative] = 1.0,
        temperature: Annotated[float, Positive] = 4.0,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        return dist(inputs.student.logits, inputs.teacher_logits, self.beta, self.gamma, self.temperature)
