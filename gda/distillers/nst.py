r"""Neuron selectivity transfer: the channels of both models fire at the same places, as distributions.

Formula, for the maps of one stage, student ``(B, C_S, H, W)`` and teacher ``(B, C_T, H, W)``; ``s_i`` and
``t_j`` are the channels of one sample, flattened to ``(H * W,)`` and divided by their L2 norm::

    k(a, b) = (a . b)^2
    MMD^2   =   1/C_S^2       sum_{i, i'} k(s_i, s_i')
              + 1/C_T^2       sum_{j, j'} k(t_j, t_j')
              - 2/(C_S C_T)   sum_{i, j}  k(s_i, t_j)
    NST     = sum over stages of the mean over B of MMD^2                      (scalar)

Source: Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017,
arXiv:1707.01219, section 4 (squared maximum mean discrepancy, polynomial kernel of degree 2 without
constant). Default: weight 50 from mdistiller, which equals RepDistiller. Both take every stage of a model;
the stages here are those that all CIFAR ResNets have.

Sums of squared products of channels are sums of products of positions: with ``M_S`` the mean over
channels of ``s_i s_i^T``, ``(H * W, H * W)``, ``MMD^2`` is the squared distance of ``M_S`` and ``M_T``.
The smaller of both forms is computed, in memory of ``B * min(C, H * W)^2`` numbers for each of three
matrices (the published code needs ``B * C^2 * H * W``).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gda.distillers.logits import at_least_float32
from gda.distillers.map_term import MapTerm
from gda.distillers.term import TermInputs


def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between the channels of two maps, mean over the batch.

    Args:
        student: ``(batch, channels, height, width)``.
        teacher: The same height and width, any channels; no gradient flows into it.

    Returns:
        Scalar, zero where both maps have the same channels in any order and at any scale; not
        negative but for rounding.

    Raises:
        ValueError: Batch, height or width differ.
    """
    if (len(student), *student.shape[2:]) != (len(teacher), *teacher.shape[2:]):
        raise ValueError(f"maps must have one size, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    # Differences of nearly equal numbers follow: autocast must not round the products.
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = _selectivity(student), _selectivity(teacher.detach())
        if ours.shape[2] <= max(ours.shape[1], theirs.shape[1]):
            return (_over_channels(ours) - _over_channels(theirs)).square().sum(dim=(1, 2)).mean()
        return _kernel_mean(ours, ours) + _kernel_mean(theirs, theirs) - 2 * _kernel_mean(ours, theirs)


def _selectivity(feature: Tensor) -> Tensor:
    """Channels as vectors of length 1, ``(batch, channels, height * width)``; silent ones stay 0."""
    return F.normalize(at_least_float32(feature).flatten(2), dim=2)


def _over_channels(vectors: Tensor) -> Tensor:
    """Mean over channels of the products of all positions, ``(batch, positions, positions)``."""
    return vectors.transpose(1, 2) @ vectors / vectors.shape[1]


def _kernel_mean(first: Tensor, second: Tensor) -> Tensor:
    """Mean over batch and pairs of channels of the kernel."""
    return (first @ second.transpose(1, 2)).square().mean()


class NST(MapTerm):
    """Neuron selectivity transfer as a term.

    Args:
        stages: Maps of the student: stage numbers, or taps by name.
        teacher_stages: Maps of the teacher; ``None`` for the same.
    """

    paper = "1707.01219"
    needs_positions = True

    def __init__(
        self,
        stages: Sequence[int | str] = (1, 2, 3),
        teacher_stages: Sequence[int | str] | None = None,
    ) -> None:
        super().__init__(stages, teacher_stages)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        return torch.stack([nst(student, teacher) for student, teacher in self.pairs(inputs)]).sum()
