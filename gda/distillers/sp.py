r"""Similarity-preserving distillation: the same pairs of samples are similar for student and teacher.

Formula, for maps ``s`` ``(B, C_S, H_S, W_S)`` of the student and ``t`` of the teacher, of any other size,
each flattened to one vector per sample::

    G(x) = x x^T,  each row divided by its L2 norm                              (B, B)
    SP   = sum over pairs of maps  1/B^2 sum_ij ( G(t)_ij - G(s)_ij )^2         (scalar)

Source: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv:1907.09682,
section 3. Defaults: weight 3000 and the last map of both models, from mdistiller, which equals
RepDistiller. Here that is the map which the head averages. The published map is the same one, except in
WRN (before the last norm: ``stages=[3]``), ShuffleNetV2 and MobileNetV2 (before the last 1x1
convolution: ``stages=[4]``, ``stages=[blocks.6]``).

Neither the sizes of the maps nor their scale matter. A map of zeros is similar to none: its row of ``G``
is 0, with gradient 0 (published: a gradient of order 1e12). Memory: a dozen matrices ``(B, B)`` beside
the maps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gda.distillers.feature_vectors import as_vectors, directions, require_same_batch
from gda.distillers.map_term import MapTerm
from gda.distillers.term import RunFacts, TermInputs
from gda.models.layout import FINAL, layout_of


def similarities(vectors: Tensor) -> Tensor:
    """Products of all pairs of rows, each row of products divided by its length.

    Args:
        vectors: ``(batch, width)``.

    Returns:
        ``(batch, batch)``; rows have length 1.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        vectors = as_vectors(vectors)
        # The scale cancels; without it, squares of squares stay within the range of float32.
        scale = vectors.detach().abs().amax()
        scaled = vectors / torch.where(scale > 0, scale, torch.ones_like(scale))
        return directions(scaled @ scaled.t(), torch.finfo(vectors.dtype).tiny)


def sp(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean-squared difference of the similarities within a batch.

    Args:
        student: Student features, ``(batch, width)``; flattened maps, for example.
        teacher: Teacher features, ``(batch, width)``, of any width; no gradient flows into them.

    Returns:
        Non-negative scalar, zero where all similarities agree.

    Raises:
        ValueError: The batches differ.
    """
    require_same_batch(student, teacher)
    return (similarities(teacher.detach()) - similarities(student)).square().mean()


class SP(MapTerm):
    """Similarity-preserving distillation as a term.

    Args:
        stages: Maps of the student: stage numbers, or taps by name; ``final`` is what the head averages.
        teacher_stages: Maps of the teacher; ``None`` for the same.
    """

    kind = "relation"
    paper = "1907.09682"

    def __init__(
        self, stages: Sequence[int | str] = (FINAL,), teacher_stages: Sequence[int | str] | None = None
    ) -> None:
        super().__init__(stages, teacher_stages)

    def refusals(self, facts: RunFacts) -> list[str]:
        """Says in sentences which maps a model does not have, and what to type instead."""
        lacking = {
            role: model
            for role, model, taps in (
                ("student", facts.student, self.student_features),
                ("teacher", facts.teacher, self.teacher_features),
            )
            if model is not None and FINAL in taps and FINAL not in layout_of(model).names()
        }
        stages, teacher_stages = ("4" if role in lacking else FINAL for role in ("student", "teacher"))
        return super().refusals(facts) + [
            f"the head of the {role} ({type(model).__name__}) is not given the average of a map, so there is "
            f"no {FINAL}: name its last one, as in stages=[{stages}] teacher_stages=[{teacher_stages}]"
            for role, model in lacking.items()
        ]

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch."""
        teacher = {} if inputs.teacher is None else inputs.teacher.features
        losses = [
            sp(inputs.student.features[ours].flatten(1), teacher[theirs].flatten(1))
            for ours, theirs in zip(self.student_features, self.teacher_features, strict=True)
        ]
        return torch.stack(losses).sum()
