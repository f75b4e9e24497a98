r"""Attention transfer: the student looks where the teacher looks.

Formula, for the maps of stage ``l``, ``S_l`` ``(B, C_S, H, W)`` of the student and ``T_l``
``(B, C_T, H, W)`` of the teacher, and a power ``p``::

    Q(A)  = flatten( 1/C sum_c |A_c|^p ),  (B, H * W), each row divided by its L2 norm
    AT    = sum_l mean over B, H * W of ( Q(S_l) - Q(T_l) )^2                  (scalar)

Source: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv:1612.03928,
equation 2, with the mean in place of the norm. Defaults: p 2 and weight 1000 from mdistiller, which equals
RepDistiller. Both take every stage of a model; the stages here are those that all CIFAR ResNets have.

Neither the scale of a map nor the order or number of its channels matters, hence no projector.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from gda.distillers.logits import at_least_float32
from gda.distillers.map_term import MapTerm
from gda.distillers.term import TermInputs
from gda.ranges import Range


def attention(feature: Tensor, p: float) -> Tensor:
    """Returns how strongly each position of a map is active, as a vector of length 1 per sample.

    Args:
        feature: ``(batch, channels, height, width)``.
        p: Power of the activations, at least 1.

    Returns:
        Non-negative, ``(batch, height * width)``; a map of zeros gives zeros.
    """
    feature = at_least_float32(feature)
    # The scale of a sample cancels; without it, high powers stay within the range of float32.
    scale = feature.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    scaled = feature / scale.clamp_min(torch.finfo(feature.dtype).tiny)
    return F.normalize(scaled.abs().pow(p).mean(dim=1).flatten(1), dim=1)


def at(student: Tensor, teacher: Tensor, p: float = 2.0) -> Tensor:
    """Mean-squared difference of the attention of two maps.

    Args:
        student: ``(batch, channels, height, width)``.
        teacher: The same height and width, any channels; no gradient flows into it.
        p: Power of the activations, at least 1.

    Returns:
        Non-negative scalar, zero where both maps are proportional.

    Raises:
        ValueError: Batch, height or width differ.
    """
    if (len(student), *student.shape[2:]) != (len(teacher), *teacher.shape[2:]):
        raise ValueError(f"maps must have one size, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    return F.mse_loss(attention(student, p), attention(teacher.detach(), p))


class AT(MapTerm):
    """Attention transfer as a term.

    Args:
        stages: Maps of the student: stage numbers, or taps by name.
        teacher_stages: Maps of the teacher; ``None`` for the same.
        p: Power of the activations.
    """

    paper = "1612.03928"
    needs_positions = True

    def __init__(
        self,
        stages: Sequence[int | str] = (1, 2, 3),
        teacher_stages: Sequence[int | str] | None = None,
        p: Annotated[float, Range(minimum=1)] = 2.0,
    ) -> None:
        super().__init__(stages, teacher_stages)
        self.p = p

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        return torch.stack([at(student, teacher, self.p) for student, teacher in self.pairs(inputs)]).sum()
