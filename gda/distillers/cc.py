r"""Correlation congruence, in the form that distillation papers compare with.

Formula, for features ``s`` ``(B, D_S)`` of the student and ``t`` ``(B, D_T)`` of the teacher before the
head, and linear embeddings ``e_S``, ``e_T`` of them with bias, ``(B, E)``, which are trained along::

    a  = | e_S(s) - e_T(t) |                                                    (B, E)
    CC = 1/(B - 1) sum_i < a_i, a_(i+1) >       over neighbours in the batch    (scalar)

Source: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019,
arXiv:1904.01802. The paper compares kernel matrices of the batch. RepDistiller, whose numbers other
papers cite, has the form above, by its own account from code that the paper's authors shared; this is
that form. Defaults: weight .02 and E 128 from RepDistiller (torchdistill's ImageNet weight is .003).

Only neighbours in the batch meet, so the value depends on the order of the samples, unlike other relation
terms. Both embeddings get a gradient, the teacher's too: the loss is also small where both are small.
"""

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from gda.distillers.feature_vectors import pooled_vectors
from gda.distillers.logits import at_least_float32
from gda.distillers.term import RunFacts, Term, TermInputs
from gda.models.layout import POOLED
from gda.ranges import Range


def cc(student: Tensor, teacher: Tensor) -> Tensor:
    """Products of the differences of neighbouring samples, mean over the pairs of neighbours.

    Args:
        student: Embeddings of the student's features, ``(batch, width)``.
        teacher: Embeddings of the teacher's features, ``(batch, width)``. The embedding is trained, so here,
            unlike elsewhere, gradients flow into both; detach what the teacher gave before it is embedded.

    Returns:
        Non-negative scalar, zero where the embeddings agree, and for a batch of one sample.

    Raises:
        ValueError: The shapes differ.
    """
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"embeddings of student and teacher must both be (batch, width), "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    apart = (at_least_float32(student) - at_least_float32(teacher)).abs()
    return (apart[:-1] * apart[1:]).sum() / max(1, len(apart) - 1)


class CC(Term):
    """Correlation congruence as a term, with its embeddings.

    Args:
        width: Width of the embeddings.
    """

    kind = "relation"
    paper = "1904.01802"

    def __init__(self, width: Annotated[int, Range(minimum=1)] = 128) -> None:
        super().__init__()
        self.student_features = self.teacher_features = (POOLED,)
        self.width = width

    def setup(self, facts: RunFacts) -> None:
        """Makes the embeddings."""
        self.student_embedding = nn.Linear(math.prod(facts.student_features[POOLED].shape), self.width)
        self.teacher_embedding = nn.Linear(math.prod(facts.teacher_features[POOLED].shape), self.width)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        student, teacher = pooled_vectors(inputs)
        with torch.autocast(student.device.type, enabled=False):
            return cc(self.student_embedding(student), self.teacher_embedding(teacher))
