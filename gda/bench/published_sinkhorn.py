"""The Sinkhorn term as published: the plan itself is renormalised, and autograd remembers all of it.

It exists only to be measured and compared against; training uses :mod:`gda.distillers.sinkhorn`.

Formula, for student and teacher logits ``(B, C)``: ``p``, ``q`` are the softmax at temperature ``T``
of the logits standardised per row (unbiased standard deviation plus 1e-7), ``W[i, j]`` is the L1
distance of ``p_i`` and ``q_j``, ``P = exp(-W / epsilon)``. Then, ``iterations`` times: rows of ``P`` to
sum 1, columns to sum 1. The loss is ``sum(P * W)``. Every round keeps two ``B x B`` matrices for the
backward pass.

Source: Global Distribution Alignment, repository zhiweihu1103/Logit-Distillation-GDA.
"""

import torch
from torch import Tensor


def published_sinkhorn(
    student: Tensor, teacher: Tensor, temperature: float = 2.0, epsilon: float = 0.1, iterations: int = 20
) -> Tensor:
    """Sinkhorn term of Global Distribution Alignment in its published formulation.

    Args:
        student: Student logits, ``(batch, classes)``.
        teacher: Teacher logits, ``(batch, classes)``.
        temperature: Temperature of both softmaxes, above 0.
        epsilon: Strength of the entropic regularisation, above 0.
        iterations: Rounds of row and column normalisation, at least 1.

    Returns:
        Scalar, summed over the batch.
    """

    def probabilities(logits: Tensor) -> Tensor:
        mean = logits.mean(dim=1, keepdim=True)
        std = logits.std(dim=1, keepdim=True)
        return ((logits - mean) / (std + 1e-7) / temperature).softmax(dim=1)

    cost = torch.cdist(probabilities(student), probabilities(teacher), p=1)
    plan = torch.exp(-cost / epsilon)
    for _ in range(iterations):
        plan = plan / plan.sum(dim=1, keepdim=True)
        plan = plan / plan.sum(dim=0, keepdim=True)
    return (plan * cost).sum()
