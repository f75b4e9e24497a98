r"""KD by singular value decomposition: how the leading vectors of one stage relate to those of the next.

Formula, for the maps of stage ``l`` of one sample, ``(C, H, W)``, read as a matrix of ``C * H`` rows and
``W`` columns: ``V_l`` ``(W, k)`` holds the right singular vectors of the teacher's ``k`` largest singular
values, and of the student's ``k + 3`` largest those most similar to each of them (largest ``|cosine|``),
with signs turned to theirs. Both are multiplied by the teacher's singular values, divided by their
L2 norm over ``k``::

    R_l[i, j, c] = exp( -( V_{l+1}[i, c] - V_l[j, c] )^2 / 8 )     (W_{l+1}, W_l, k)
    KDSVD = sum_l 1/B sum_{b, i, j, c} ( R_l of student - R_l of teacher )^2   (scalar)

Source: Lee, Kim, Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition",
ECCV 2018, arXiv:1807.06819, section 3. Defaults: k 1 and weight 1 from mdistiller. The paper's matrix has
``H * W`` rows and ``C`` columns, so that both models need equal channels; mdistiller, and therefore this
file, reads maps of any channels as above. mdistiller takes every stage of a model; the stages here are
those that all CIFAR ResNets have.

The sign of a singular vector is arbitrary, and the formula depends on the teacher's. Here the sum of a
vector's entries is never negative, so that the loss does not change with the linear algebra library.
The vectors are eigenvectors of ``(W, W)`` Gram matrices. Their derivative divides by differences of
eigenvalues and does not exist where two of them are equal: there each quotient ``1/d`` becomes
``d / (d^2 + delta^2)``, with ``delta`` the square root of the precision, relative to the sum of the
eigenvalues. The paper's code drops infinite quotients.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from gda.distillers.feature_maps import map_shape, to_smaller_size
from gda.distillers.logits import at_least_float32
from gda.distillers.map_term import MapTerm
from gda.distillers.term import RunFacts, TermInputs
from gda.errors import UserError
from gda.ranges import Range

CANDIDATES = 3
"""How many more vectors of the student than ``k`` may stand for one of the teacher's."""

BANDWIDTH = 8.0


def right_singular_vectors(feature: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Decomposes each sample's map, read as a matrix of ``channels * height`` rows.

    Args:
        feature: ``(batch, channels, height, width)``.
        count: How many of the largest singular values are kept; at most ``width`` are.

    Returns:
        The vectors ``(batch, width, count)``, of length 1 and with a gradient that is finite
        everywhere, and the singular values relative to the root of their sum of squares,
        ``(batch, count)``, without gradient. Both in float32 or better, the largest value first.
    """
    with torch.autocast(feature.device.type, enabled=False):
        matrix = at_least_float32(feature).flatten(1, 2)
        # The vectors do not depend on the scale, which would overflow or underflow in the products.
        norm = torch.linalg.matrix_norm(matrix.detach(), keepdim=True)
        matrix = matrix / norm.clamp_min(torch.finfo(matrix.dtype).tiny)
        gram = matrix.transpose(1, 2) @ matrix
        constant = gram.detach()
        # A diverged map must reach the loss as NaN, not end in an error of the decomposition.
        values, basis = torch.linalg.eigh(constant.nan_to_num())
        values, basis = values.flip(1), basis.flip(2)
        values, kept = values.clamp_min(0), basis[:, :, :count]
        # First-order perturbation: equals the constant vectors, and has their derivative.
        gap = values[:, None, :count] - values[:, :, None]
        inverse = gap / (gap.square() + torch.finfo(gap.dtype).eps)
        change = inverse * (basis.transpose(1, 2) @ (gram - constant) @ kept)
        return kept + basis @ change, values[:, :count].sqrt()


def _aligned(student: Tensor, teacher: Tensor) -> Tensor:
    """For each vector of the teacher the most similar one of the student, with its sign."""
    cosine = student.transpose(1, 2) @ teacher
    best = cosine.detach().abs().argmax(dim=1, keepdim=True)
    sign = cosine.detach().gather(1, best).sign()
    return student.gather(2, best.expand(-1, student.shape[1], -1)) * sign


def _relation(upper: Tensor, lower: Tensor) -> Tensor:
    """Similarity of all entries of both vectors, ``(batch, width, width, k)``."""
    return torch.exp(-(upper.unsqueeze(2) - lower.unsqueeze(1)).square() / BANDWIDTH)


def kdsvd(students: Sequence[Tensor], teachers: Sequence[Tensor], k: int = 1) -> Tensor:
    """Squared difference of the relations between consecutive stages, mean over the batch.

    Args:
        students: Maps of the student by stage, each ``(batch, channels, height, width)``; at least two.
        teachers: As many maps of the teacher, of any channels and sizes; the larger map of a pair is
            pooled. No gradient flows into them.
        k: How many singular vectors are compared; at most the width of the narrowest map.

    Returns:
        Non-negative scalar, zero where all maps are equal.

    Raises:
        ValueError: There are fewer than two stages, or not as many of both models.
    """
    if len(students) != len(teachers) or len(students) < 2:
        raise ValueError(
            f"kdsvd relates stages to the next: it needs at least two maps of each model, "
            f"got {len(students)} and {len(teachers)}"
        )
    vectors = []
    for student, teacher in zip(students, teachers, strict=True):
        student, teacher = to_smaller_size(student, teacher.detach())
        ours, _ = right_singular_vectors(student, k + CANDIDATES)
        theirs, strength = right_singular_vectors(teacher, k)
        with torch.autocast(student.device.type, enabled=False):
            theirs = theirs * torch.where(theirs.sum(dim=1, keepdim=True) < 0, -1, 1)
            strength = F.normalize(strength, dim=1).unsqueeze(1)
            vectors.append((_aligned(ours, theirs) * strength, theirs * strength))
    losses = [
        (_relation(upper[0], lower[0]) - _relation(upper[1], lower[1])).square().sum() / len(students[0])
        for lower, upper in pairwise(vectors)
    ]
    return torch.stack(losses).sum()


class KDSVD(MapTerm):
    """KD by singular value decomposition as a term.

    Args:
        stages: Maps of the student: stage numbers, or taps by name; at least two.
        teacher_stages: Maps of the teacher; ``None`` for the same.
        k: How many singular vectors are compared.

    Raises:
        UserError: There are fewer than two stages.
    """

    paper = "1807.06819"
    needs_positions = True

    def __init__(
        self,
        stages: Sequence[int | str] = (1, 2, 3),
        teacher_stages: Sequence[int | str] | None = None,
        k: Annotated[int, Range(minimum=1)] = 1,
    ) -> None:
        super().__init__(stages, teacher_stages)
        if len(stages) < 2:
            raise UserError("kdsvd relates each stage to the next: give two or more, as in stages=[2,3]")
        self.k = k

    def refusals(self, facts: RunFacts) -> list[str]:
        """Says which maps are missing, or narrower than the number of vectors."""
        sentences = super().refusals(facts)
        if sentences:
            return sentences
        widths = [map_shape(tap)[2] for pair in self._descriptions(facts) for tap in pair]
        if widths and min(widths) < self.k:
            sentences.append(f"a map {min(widths)} wide has no {self.k} singular vectors: k={min(widths)}")
        return sentences

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        students, teachers = zip(*self.pairs(inputs), strict=True)
        return kdsvd(students, teachers, self.k)
