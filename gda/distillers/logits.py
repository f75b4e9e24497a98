"""What every logit term starts from: checked logits in float32 or better, and their spread."""

import math

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Returns ``tensor`` in float32 when it is half or bfloat16, else unchanged (float64 stays)."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def logit_pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Checks two logit matrices and brings them to one precision of at least float32.

    Half-precision logits come out of a model under autocast. Exponentials, variances and
    differences of nearly equal numbers lose their meaning in 8 or 11 bits, so the loss arithmetic
    starts from float32; inputs in float64 keep it.

    Args:
        student: Student logits, ``(batch, classes)``.
        teacher: Teacher logits, ``(batch, classes)``.

    Returns:
        Both in the same dtype. The teacher's are detached: no term trains the teacher.

    Raises:
        ValueError: The shapes differ or are not ``(batch, classes)``. Broadcasting one row over a
            batch would give a plausible number, so it is refused here.
    """
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher logits must both be (batch, classes), "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)


def below_maximum(logits: Tensor) -> Tensor:
    """Takes each row's maximum off, ``(batch, classes)``, as a constant.

    Spreads and softmaxes do not see it. A constant row becomes exactly 0 whatever its level, so
    that rounding of the mean cannot pose as spread.
    """
    return logits - logits.detach().amax(dim=1, keepdim=True)


def squared(temperature: float | Tensor) -> float | Tensor:
    """Returns ``T^2`` as a factor of losses ``(batch,)``: of a number, or of one value per sample."""
    return temperature.reshape(-1).square() if isinstance(temperature, Tensor) else temperature**2


def row_std(shifted: Tensor) -> Tensor:
    """Unbiased standard deviation of each row.

    By a norm, which is several times faster than ``torch.std`` for rows of 100 classes on a CPU.

    Args:
        shifted: Output of :func:`below_maximum`, ``(batch, classes)``, at least two classes.

    Returns:
        ``(batch, 1)``. Exactly 0, with gradient 0, for constant rows.
    """
    deviation = shifted - shifted.mean(dim=1, keepdim=True)
    norm = torch.linalg.vector_norm(deviation, dim=1, keepdim=True)
    return norm / math.sqrt(shifted.shape[1] - 1)
