r"""Relational knowledge distillation: distances within a batch, and angles between its samples.

Formulas, for features ``s`` ``(B, D_S)`` of the student and ``t`` ``(B, D_T)`` of the teacher, and
``l`` the smooth L1 loss (``x^2 / 2`` up to ``|x| = 1``, ``|x| - 1/2`` beyond)::

    d_ij(x)  = |x_i - x_j|,   mu(x) = mean of d_ij(x) over i != j
    distance = 1/B^2 sum_ij  l( d_ij(s) / mu(s) - d_ij(t) / mu(t) )             (scalar)
    c_ijk(x) = < (x_j - x_i) / d_ij(x), (x_k - x_i) / d_ik(x) >                 cosine at point i
    angle    = 1/B^3 sum_ijk l( c_ijk(s) - c_ijk(t) )                           (scalar)

Source: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068,
sections 3.2.1 (distance) and 3.2.2 (angle). Defaults: weights 25 and 50, distances not squared,
features before the head, from mdistiller, which equals RepDistiller. Both are terms of their own, so
that each weight is one number of the config.

Neither the widths, nor a shift, a rotation or the scale of the features matter. As in the published
code, pairs closer than 1e-6 count as 1e-6 apart in ``distance``, and an angle between coincident points
has cosine 0. The published gradient of such an angle is a number of order 1e10, from dividing a vector
of zeros by 1e-12; here it is 0. A batch of one sample has loss 0 (published: NaN).

**Memory.** Neither differences ``(B, B, D)`` nor cosines ``(B, B, B)`` are kept. By the law of cosines ::

    c_ijk = ( d_ij^2 + d_ik^2 - d_jk^2 ) / ( 2 d_ij d_ik )

the angle loss is a function of the ``(B, B)`` matrix of squared distances alone. It is computed
together with its gradient, a few points ``i`` at a time. Peak beyond the inputs: a dozen matrices
``(B, B)`` and four blocks of ``max(2^18, B^2)`` numbers on a CPU, ``max(2^24, B^2)`` elsewhere. That is
at most 0.3 GiB in float32 at B = 1024 for any D (measured 0.07 GiB on a CPU, D = 2048), where the
differences alone would take 8 GiB.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gda.distillers.feature_vectors import as_vectors, pooled_vectors, require_same_batch
from gda.distillers.term import Term, TermInputs
from gda.models.layout import POOLED

NEAREST_SQUARED = 1e-12
"""Smallest squared distance that the distance loss tells apart."""

COINCIDENT_SQUARED = 1e-24
"""Largest squared distance of two points that define no direction."""

BLOCK_CPU, BLOCK_ACCELERATOR = 2**18, 2**24
"""Numbers in a block of cosines: what stays in a processor's cache, and what keeps an accelerator busy."""


class _SquaredDistances(torch.autograd.Function):
    """Squared distances of all pairs of rows, ``(B, D)`` to ``(B, B)``, from differences.

    Products of features would be cheaper, but lose the digits of close pairs. torch's own backward pass
    of distances keeps all differences on a GPU; here it is one product of matrices.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        ctx.save_for_backward(vectors)
        return torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist").square_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (vectors,) = ctx.saved_tensors
        with torch.autocast(vectors.device.type, enabled=False):
            centred = vectors - vectors.mean(dim=0)
            both = grad + grad.t()
            return 2 * torch.addmm(both.sum(dim=1, keepdim=True) * centred, both, centred, alpha=-1)


class _AngleLoss(torch.autograd.Function):
    """The angle loss of two matrices of squared distances, with its gradient from the same pass.

    With ``g = l'(c(s) - c(t))``, ``a_j = d_ij^2`` and ``r = 1 / d`` of the student, each point ``i`` adds ::

        dL/da_j    = r_j sum_k g_jk r_k - r_j^2 sum_k g_jk c_jk
        dL/dd_jk^2 = -1/2 g_jk r_j r_k
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        batch = len(student)
        inverse_student, inverse_teacher = _inverse_distances(student), _inverse_distances(teacher)
        gradient = torch.zeros_like(student)
        sums = student.new_empty(batch)
        block = BLOCK_CPU if student.device.type == "cpu" else BLOCK_ACCELERATOR
        step = max(1, block // batch**2)
        for first in range(0, batch, step):
            here = slice(first, first + step)
            cosines = _cosines(student, inverse_student, here)
            difference = cosines - _cosines(teacher, inverse_teacher, here)
            slope = difference.clamp(-1, 1)
            sums[here] = difference.sub_(slope, alpha=0.5).mul_(slope).sum(dim=(1, 2))
            if not ctx.needs_input_grad[0]:
                continue
            inverse = inverse_student[here]
            gradient[here] -= inverse.square() * cosines.mul_(slope).sum(dim=2)
            slope.mul_(inverse.unsqueeze(1))
            gradient[here] += inverse * slope.sum(dim=2)
            gradient.sub_(slope.mul_(inverse.unsqueeze(2)).sum(dim=0), alpha=0.5)
        ctx.save_for_backward(gradient.div_(batch**3))
        return sums.sum() / batch**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None


def _inverse_distances(squared: Tensor) -> Tensor:
    """``1 / d``, and 0 for pairs without a direction."""
    apart = squared > COINCIDENT_SQUARED
    return torch.where(apart, squared, torch.ones_like(squared)).rsqrt() * apart


def _cosines(squared: Tensor, inverse: Tensor, points: slice) -> Tensor:
    """Cosines at some points, ``(points, B, B)``, by the law of cosines."""
    at, scale = squared[points], inverse[points]
    sums = at.unsqueeze(2) + at.unsqueeze(1)
    return sums.sub_(squared).mul_(scale.unsqueeze(2)).mul_(scale.unsqueeze(1)).mul_(0.5)


def _relative(squared_distances: Tensor, squared: bool) -> Tensor:
    """Distances divided by their mean over all pairs; 0 on the diagonal."""
    distances = squared_distances.clamp(min=NEAREST_SQUARED)
    distances = distances if squared else distances.sqrt()
    itself = torch.eye(len(distances), dtype=torch.bool, device=distances.device)
    distances = distances.masked_fill(itself, 0)
    return distances / (distances.sum() / (len(distances) * (len(distances) - 1)))


def rkd_distance(student: Tensor, teacher: Tensor, squared: bool = False) -> Tensor:
    """Difference of all distances within the batch, each relative to their mean.

    Args:
        student: Student features, ``(batch, width)``.
        teacher: Teacher features, ``(batch, width)``, of any width; no gradient flows into them.
        squared: Whether squared distances are compared.

    Returns:
        Non-negative scalar, zero where the features are similar in the sense of geometry.

    Raises:
        ValueError: The batches differ.
    """
    require_same_batch(student, teacher)
    student, teacher = as_vectors(student), as_vectors(teacher.detach())
    if len(student) < 2:
        return 0.0 * student.square().sum()  # no pair
    ours, theirs = (_relative(_SquaredDistances.apply(x), squared) for x in (student, teacher))
    return F.smooth_l1_loss(ours, theirs.to(ours.dtype))


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Difference of all angles of triples of samples, by their cosines.

    Args:
        student: Student features, ``(batch, width)``.
        teacher: Teacher features, ``(batch, width)``, of any width; no gradient flows into them.

    Returns:
        Non-negative scalar, zero where the features are similar in the sense of geometry.

    Raises:
        ValueError: The batches differ.
    """
    require_same_batch(student, teacher)
    student, teacher = as_vectors(student), as_vectors(teacher.detach())
    ours, theirs = _SquaredDistances.apply(student), _SquaredDistances.apply(teacher)
    return _AngleLoss.apply(ours, theirs.to(ours.dtype))


class RKDDistance(Term):
    """The distance part of relational distillation as a term.

    Args:
        squared: Whether squared distances are compared.
    """

    kind = "relation"
    paper = "1904.05068"

    def __init__(self, squared: bool = False) -> None:
        super().__init__()
        self.student_features = self.teacher_features = (POOLED,)
        self.squared = squared

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        return rkd_distance(*pooled_vectors(inputs), squared=self.squared)


class RKDAngle(Term):
    """The angle part of relational distillation as a term."""

    kind = "relation"
    paper = "1904.05068"

    def __init__(self) -> None:
        super().__init__()
        self.student_features = self.teacher_features = (POOLED,)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        return rkd_angle(*pooled_vectors(inputs))
