r"""Variational information distillation: the student's maps tell as much as they can about the teacher's.

Formula, for the maps of stage ``l``, ``S_l`` ``(B, C_S, H, W)`` of the student and ``T_l``
``(B, C_T, H, W)`` of the teacher, a learned regressor ``m_l`` from ``C_S`` to ``C_T`` channels and a
learned number ``a_lc`` per channel ``c`` of the teacher::

    v_lc = log(1 + exp(a_lc)) + epsilon                                        (variance)
    VID  = sum_l mean over B, C_T, H, W of 1/2 ( (m_l(S_l) - T_l)_c^2 / v_lc + log v_lc )

a scalar in nats without its constant: the negative log-likelihood of the teacher's map under a normal
distribution, which bounds the mutual information of both maps. It may be negative.

Source: Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge Transfer",
CVPR 2019, arXiv:1904.05835, section 2 (heteroscedastic Gaussian model). Defaults: weight 1, initial
variance 5, epsilon 1e-5 and a regressor of three 1x1 convolutions without bias, of the teacher's width, with
ReLU between them, from mdistiller, which equals RepDistiller. The variances are trained, as in the
paper and in RepDistiller; mdistiller never hands them to its optimiser, so that they keep their first
value: ``train_variance=false`` does the same. Both take every stage of a model; the stages here are those
that all CIFAR ResNets have.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gda.distillers.logits import at_least_float32
from gda.distillers.map_term import MapTerm
from gda.distillers.term import RunFacts, TermInputs
from gda.errors import UserError
from gda.ranges import Positive


def vid(student: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """Negative log-likelihood of the teacher's map around the student's, without its constant.

    Args:
        student: The student's map after its regressor, ``(batch, channels, height, width)``.
        teacher: Map of the teacher, of the same shape; no gradient flows into it.
        variance: Variance of each channel, ``(channels,)``, above 0.

    Returns:
        Scalar in nats, mean over all values; smallest where both maps are equal.

    Raises:
        ValueError: The shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"maps must have one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    error = at_least_float32(student) - at_least_float32(teacher.detach())
    variance = at_least_float32(variance).reshape(1, -1, 1, 1)
    return 0.5 * (error.square() / variance + variance.log()).mean()


def _regressor(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 1, bias=False),
    )


class VID(MapTerm):
    """Variational information distillation as a term, with its regressors and variances.

    Args:
        stages: Maps of the student: stage numbers, or taps by name.
        teacher_stages: Maps of the teacher; ``None`` for the same.
        initial_variance: Variance of every channel before training; above ``epsilon``.
        epsilon: Smallest variance.
        train_variance: Whether variances are trained.

    Raises:
        UserError: ``initial_variance`` is not above ``epsilon``.
    """

    paper = "1904.05835"

    def __init__(
        self,
        stages: Sequence[int | str] = (1, 2, 3),
        teacher_stages: Sequence[int | str] | None = None,
        initial_variance: Annotated[float, Positive] = 5.0,
        epsilon: Annotated[float, Positive] = 1e-5,
        train_variance: bool = True,
    ) -> None:
        super().__init__(stages, teacher_stages)
        if initial_variance <= epsilon:
            raise UserError(
                f"initial_variance={initial_variance} must be greater than epsilon={epsilon}, "
                f"the smallest variance"
            )
        self.initial_variance, self.epsilon = initial_variance, epsilon
        self.train_variance = train_variance
        self.regressors = nn.ModuleList()
        self.raw_variances = nn.ParameterList()

    def setup(self, facts: RunFacts) -> None:
        """Makes one regressor per pair of maps, and one variance per channel of the teacher."""
        super().setup(facts)
        # The inverse of softplus, in a form that does not overflow.
        above = self.initial_variance - self.epsilon
        raw = above + math.log(-math.expm1(-above))
        self.regressors = nn.ModuleList(_regressor(ours[0], theirs[0]) for ours, theirs in self.shapes)
        self.raw_variances = nn.ParameterList(
            nn.Parameter(torch.full((theirs[0],), raw), requires_grad=self.train_variance)
            for _, theirs in self.shapes
        )

    def variances(self) -> list[Tensor]:
        """Variance of each channel of the teacher, ``(channels,)``, by pair of maps."""
        return [F.softplus(raw) + self.epsilon for raw in self.raw_variances]

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        parts = zip(self.regressors, self.variances(), self.pairs(inputs), strict=True)
        return torch.stack(
            [vid(regress(student), teacher, variance) for regress, variance, (student, teacher) in parts]
        ).sum()
