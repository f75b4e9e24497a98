r"""A simple recipe for distillation: features before the head, projected and normalised, in a soft maximum.

Formula, for features ``s`` ``(B, D_S)`` and logits of the student, ``t`` ``(B, D_T)`` and logits of the
teacher, and a learned matrix ``W`` ``(D_T, D_S)``::

    N(x)  = ( x - mean over B ) / sqrt( variance over B + 1e-4 )               (per feature)
    D     = log sum over B, D_T of | N(W s) - N(t) |^p
    SRD   = 2 * D + KD(student logits, teacher logits; T)                      (scalar)

Source: Miles, Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
arXiv:2303.11098. Defaults: weight 1, exponent p 4, factor 2 and T 1 from torchdistill (its SRDLoss), which
equals the authors' code. That has the factor ``T^2`` of KD as here, which torchdistill leaves out; at T 1
it makes no difference. The projector's bias is left out: normalisation takes it off again.

The logarithm makes the gradient independent of the scale of ``D``, the exponent lets the largest
differences count: few features that a small student can't reach. The teacher's features are those that its
head is given; no head is needed. Where all of them are reached within 1e-4, ``D`` stays at its smallest
value, ``p * log 1e-4``, with gradient 0. Statistics are those of the batch, of each rank for itself.
"""

import math
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F

from gda.distillers.feature_vectors import pooled_vectors, require_same_batch
from gda.distillers.kd import kd
from gda.distillers.logits import at_least_float32
from gda.distillers.term import RunFacts, Term, TermInputs
from gda.models.layout import POOLED
from gda.ranges import NonNegative, Positive, Range

REACHED = 1e-4
EPSILON = 1e-4


def normalised(features: Tensor) -> Tensor:
    """Gives each feature mean 0 and variance 1 over the batch.

    Args:
        features: ``(batch, width)``, at least two rows.

    Returns:
        The same shape, in float32 or better; features that are constant become 0.

    Raises:
        ValueError: There is one row, which has no variance.
    """
    return F.batch_norm(at_least_float32(features), None, None, training=True, eps=EPSILON)


def srd(student: Tensor, teacher: Tensor, exponent: float = 4.0) -> Tensor:
    """Logarithm of the summed powers of all differences.

    Args:
        student: The student's features, projected and normalised, ``(batch, width)``.
        teacher: The teacher's, normalised, of the same shape; no gradient flows into them.
        exponent: Power of the differences, at least 1.

    Returns:
        Scalar, smallest where both are equal: ``exponent * log 1e-4``.

    Raises:
        ValueError: The shapes differ.
    """
    require_same_batch(student, teacher)
    if student.shape != teacher.shape:
        raise ValueError(f"features must have one width, got {student.shape[1]} and {teacher.shape[1]}")
    difference = (at_least_float32(student) - at_least_float32(teacher.detach())).abs()
    # As a log-sum-exp: shares of the largest difference neither over- nor underflow at any exponent.
    largest = difference.detach().amax().clamp_min(REACHED)
    shares = (difference / largest).pow(exponent).sum()
    return exponent * largest.log() + shares.clamp_min(1).log()


class SRD(Term):
    """The simple recipe as a term, with its projector.

    Args:
        exponent: Power of the differences of features.
        feature_weight: Factor of the part that compares features.
        temperature: Softening of both distributions in the part that compares logits.
    """

    kind = "feature"
    paper = "2303.11098"

    def __init__(
        self,
        exponent: Annotated[float, Range(minimum=1)] = 4.0,
        feature_weight: Annotated[float, NonNegative] = 2.0,
        temperature: Annotated[float, Positive] = 1.0,
    ) -> None:
        super().__init__()
        self.student_features = self.teacher_features = (POOLED,)
        self.exponent, self.feature_weight, self.temperature = exponent, feature_weight, temperature

    def setup(self, facts: RunFacts) -> None:
        """Makes the projector, from the student's width to the teacher's."""
        ours, theirs = (
            math.prod(known[POOLED].shape) for known in (facts.student_features, facts.teacher_features)
        )
        self.projector = nn.Linear(ours, theirs, bias=False)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        student, teacher = pooled_vectors(inputs)
        features = srd(normalised(self.projector(student)), normalised(teacher), self.exponent)
        logits = kd(inputs.student.logits, inputs.teacher_logits, self.temperature)
        return self.feature_weight * features + logits
