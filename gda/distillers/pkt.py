r"""Probabilistic knowledge transfer: each sample's neighbours, as probabilities, are the teacher's.

Formula, for features ``s`` ``(B, D_S)`` of the student and ``t`` ``(B, D_T)`` of the teacher::

    K_ij(x) = ( 1 + cos(x_i, x_j) ) / 2                                     (B, B), in 0 to 1
    p_ij = K_ij(s) / sum_k K_ik(s),   q_ij = K_ij(t) / sum_k K_ik(t)        rows sum to 1
    PKT  = 1/B^2 sum_ij q_ij log( (q_ij + 1e-7) / (p_ij + 1e-7) )           (scalar, nats)

Source: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
arXiv:1803.10837, with the cosine kernel. Defaults: weight 3e4, features before the head, from
mdistiller, which equals RepDistiller. Both count a sample as its own neighbour and take the mean over
all pairs, where the paper leaves the sample itself out and has the sum; the weight goes with that.

Neither the widths nor the lengths of the feature vectors matter. A vector of zeros is equally far from
all; the published gradient there is of order 1e7 (a division by ``|x| + 1e-7``), here it is 0. Memory:
a dozen matrices ``(B, B)``.
"""

import torch
from torch import Tensor

from gda.distillers.feature_vectors import as_vectors, directions, pooled_vectors, require_same_batch
from gda.distillers.term import Term, TermInputs
from gda.models.layout import POOLED

EPSILON = 1e-7


def neighbours(vectors: Tensor) -> Tensor:
    """How near each sample is to each other one, as probabilities.

    Args:
        vectors: ``(batch, width)``.

    Returns:
        ``(batch, batch)``, rows sum to 1.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        unit = directions(as_vectors(vectors), EPSILON)
        # Rounding may take a cosine below -1, and a probability below 0.
        kernel = ((1 + unit @ unit.t()) / 2).clamp_min(0)
        return kernel / kernel.sum(dim=1, keepdim=True)


def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """Divergence of the neighbours of all samples, mean over all pairs.

    Args:
        student: Student features, ``(batch, width)``.
        teacher: Teacher features, ``(batch, width)``, of any width; no gradient flows into them.

    Returns:
        Scalar in nats, zero where all cosines within the batch agree.

    Raises:
        ValueError: The batches differ.
    """
    require_same_batch(student, teacher)
    p, q = neighbours(student), neighbours(teacher.detach())
    return (q * ((q + EPSILON).log() - (p + EPSILON).log())).mean()


class PKT(Term):
    """Probabilistic knowledge transfer as a term."""

    kind = "relation"
    paper = "1803.10837"

    def __init__(self) -> None:
        super().__init__()
        self.student_features = self.teacher_features = (POOLED,)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        return pkt(*pooled_vectors(inputs))
