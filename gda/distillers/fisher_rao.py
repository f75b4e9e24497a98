r"""Fisher-Rao alignment: mean and spread of the logits, as the geodesic distance of two Gaussians.

Formula: row ``i`` of the student's logits ``(B, C)`` is summarised by its mean ``m1`` and its
unbiased standard deviation ``v1`` over classes, the teacher's by ``m2`` and ``v2``; then ::

    d_i       = 2 sqrt(2) * atanh( sqrt( A / (A + 8 v1 v2) ) ),
    A         = (m1 - m2)^2 + 2 (v1 - v2)^2,     so that A + 8 v1 v2 = (m1 - m2)^2 + 2 (v1 + v2)^2
    FisherRao = 1/B sum_i d_i                                               (scalar)

Source: the distance is that of Costa, Santos, Strapasson, "Fisher information distance: a
geometrical reading", 2015, arXiv:1210.2354; as a distillation loss it is half of Global
Distribution Alignment (repository zhiweihu1103/Logit-Distillation-GDA). It has no parameters; the
published weight next to KD is 0.02 for CIFAR ResNet56 to ResNet20 and 0.1 in the few-shot files.

It is computed as ``2 sqrt(2) * asinh(sqrt(A / (8 v1 v2)))``, which is the same number: the atanh
loses all digits where its argument is near 1 (spreads that differ much) and is infinite at 1.

Choices where the published formula has none:

* Equality, ``A = 0``: the distance has a kink there like ``|x|`` at 0; the subgradient 0 is taken.
* A standard deviation below ``1e-7`` counts as ``1e-7``, and has gradient 0. That is the resolution
  of float32 logits of size 1, so that a smaller one is rounding noise; the published code adds the
  same constant in its z-score. A constant row is thus far from every other row (about 45 at unit
  spread) instead of infinitely far, and is still pulled to the right mean.
"""

import math

import torch
from torch import Tensor

from gda.distillers.logits import below_maximum, logit_pair, row_std
from gda.distillers.term import Term, TermInputs

SMALLEST_STD = 1e-7


def fisher_rao(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Fisher-Rao distance between the Gaussians of student and teacher logits.

    Args:
        student: Student logits, ``(batch, classes)``, at least two classes.
        teacher: Teacher logits, ``(batch, classes)``; no gradient flows into them.

    Returns:
        Non-negative scalar (batch mean), finite with finite gradient for finite logits; zero with
        zero gradient where every row agrees in mean and standard deviation.

    Raises:
        ValueError: The shapes differ, or there are fewer than two classes.
    """
    student, teacher = logit_pair(student, teacher)
    if student.shape[1] < 2:
        raise ValueError("fisher_rao needs at least two classes: one logit has no spread")
    with torch.autocast(student.device.type, enabled=False):
        # Neither the standard deviation at 0 nor clamp below its bound passes a gradient on.
        student_std = row_std(below_maximum(student)).squeeze(1).clamp(min=SMALLEST_STD)
        teacher_std = row_std(below_maximum(teacher)).squeeze(1).clamp(min=SMALLEST_STD)
        # The mean of the difference, not the difference of means: exactly 0 for equal rows.
        mean_difference = (student - teacher).mean(dim=1)
        squared = mean_difference.square() + 2 * (student_std - teacher_std).square()
        differs = squared != 0  # not > 0: that would hide NaN
        # Inside as well as outside the root, or its infinite slope at 0 turns 0 * inf into NaN.
        ratio = torch.where(differs, squared, 1.0) / (8 * student_std * teacher_std)
        distance = torch.where(differs, ratio.sqrt().asinh(), 0.0)
        return 2 * math.sqrt(2) * distance.mean()


class FisherRao(Term):
    """Fisher-Rao alignment of the logits as a term."""

    kind = "alignment"

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        return fisher_rao(inputs.student.logits, inputs.teacher_logits)
