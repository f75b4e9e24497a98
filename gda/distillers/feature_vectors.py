"""What relation terms share: tapped values as one vector per sample, and the direction of vectors."""

import torch
from torch import Tensor

from gda.distillers.logits import at_least_float32
from gda.distillers.term import TermInputs
from gda.models.layout import POOLED


def as_vectors(feature: Tensor) -> Tensor:
    """Returns a tapped value as one vector per sample, ``(batch, width)``, in float32 or better.

    Args:
        feature: A vector, a map or a token map of each sample, ``(batch, ...)``.
    """
    return at_least_float32(feature.flatten(1))


def pooled_vectors(inputs: TermInputs) -> tuple[Tensor, Tensor]:
    """Returns what both heads are given, ``(batch, width)`` each, of the teacher without gradient.

    Args:
        inputs: A batch with the tap ``pooled`` of both models; their widths may differ.

    Raises:
        ValueError: There is no teacher. The config check refuses such a config before.
    """
    if inputs.teacher is None:
        raise ValueError("this term needs a teacher, and the run has none")
    student, teacher = inputs.student.features[POOLED], inputs.teacher.features[POOLED]
    return as_vectors(student), as_vectors(teacher.detach())


def require_same_batch(student: Tensor, teacher: Tensor) -> None:
    """Refuses vectors of different batches, which broadcasting could turn into a plausible number.

    Args:
        student: ``(batch, width)``.
        teacher: ``(batch, width)``, of any width.

    Raises:
        ValueError: One of them is no matrix, or they have different numbers of rows.
    """
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise ValueError(
            f"student and teacher features must be (batch, width) with one batch, "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )


def directions(vectors: Tensor, shortest: float = 1e-12) -> Tensor:
    """Divides each row by its length.

    Args:
        vectors: ``(rows, width)``.
        shortest: Rows that are not longer have no direction; they become 0, with gradient 0. Dividing
            them by a small number would give gradients of its inverse.
    """
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    has_direction = length > shortest
    # Both selections: a NaN or an infinity of the branch not taken would reach the gradient.
    safe = torch.where(has_direction, length, torch.ones_like(length))
    return torch.where(has_direction, vectors / safe, torch.zeros_like(vectors))
