r"""FitNets: the student's maps, projected, resemble the teacher's.

Formula, for the maps of stage ``l``, ``S_l`` ``(B, C_S, H, W)`` of the student and ``T_l``
``(B, C_T, H, W)`` of the teacher, and a learned projector ``r_l`` from ``C_S`` to ``C_T`` channels::

    FitNet = sum_l mean over B, C_T, H, W of ( r_l(S_l) - T_l )^2              (scalar)

Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", ICLR 2015,
arXiv:1412.6550, equation 3 (half of a sum there). The paper trains on hints first and distils then; as in
the published code below, both happen at once here.
Defaults: one hint at stage 2 and the projector ``conv_bn_relu`` (1x1 convolution, batch norm, ReLU), with
weight 100, from mdistiller. Its hint layer 2 is the map of 16x16 of its ResNets, and that of 8x8, stage 3
here, of its VGGs, MobileNetV2 and ShuffleNets. The GDA code has the projector ``linear`` (1x1 convolution
without bias) at all stages, weight 1.

Maps of different size are matched by pooling, where mdistiller learns a strided or transposed
convolution. A ReLU can't reach negative values: for teachers whose stages do not end in one
(transformers, wide ResNets, MobileNets) ``linear`` fits better.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gda.distillers.logits import at_least_float32
from gda.distillers.map_term import MapTerm
from gda.distillers.term import RunFacts, TermInputs


def fitnet(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean-squared difference of two maps.

    Args:
        student: Projected map of the student, ``(batch, channels, height, width)``.
        teacher: Map of the teacher, of the same shape; no gradient flows into it.

    Returns:
        Non-negative scalar, zero where both are equal.

    Raises:
        ValueError: The shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"maps must have one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    return F.mse_loss(at_least_float32(student), at_least_float32(teacher.detach()))


def _linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 1, bias=False)


def _conv_bn_relu(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU())


PROJECTORS: dict[str, Callable[[int, int], nn.Module]] = {"linear": _linear, "conv_bn_relu": _conv_bn_relu}


class FitNet(MapTerm):
    """FitNets' hints as a term, with their projectors.

    Args:
        stages: Maps of the student: stage numbers, or taps by name.
        teacher_stages: Maps of the teacher; ``None`` for the same.
        projector: What brings a map to the teacher's channels.
    """

    paper = "1412.6550"

    def __init__(
        self,
        stages: Sequence[int | str] = (2,),
        teacher_stages: Sequence[int | str] | None = None,
        projector: Literal["linear", "conv_bn_relu"] = "conv_bn_relu",
    ) -> None:
        super().__init__(stages, teacher_stages)
        self.projector = projector
        self.projectors = nn.ModuleList()

    def setup(self, facts: RunFacts) -> None:
        """Makes one projector per pair of maps."""
        super().setup(facts)
        make = PROJECTORS[self.projector]
        self.projectors = nn.ModuleList(make(student[0], teacher[0]) for student, teacher in self.shapes)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        pairs = zip(self.projectors, self.pairs(inputs), strict=True)
        return torch.stack([fitnet(project(student), teacher) for project, (student, teacher) in pairs]).sum()
