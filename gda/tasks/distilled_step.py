"""One step of a student that learns from labels, a teacher, or both, whatever the batch is made of."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gda.distillers.distiller import Distiller, apart
from gda.distillers.term import ModelOutput, Progress, TermInputs, View
from gda.seeding import generator
from gda.tasks.task import StepOutput


def distilled_step(
    distiller: Distiller,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    student: ModelOutput,
    teacher: ModelOutput | None,
    progress: Progress,
    seed: int,
    views: Mapping[str, View] | None = None,
    episodes: int = 1,
) -> StepOutput:
    """Computes the loss of one batch from what both models say about it.

    Args:
        distiller: The loss.
        images: ``(batch, 3, height, width)``.
        labels: Class ids ``(batch,)``.
        indices: Positions of the images in the training split, ``(batch,)``.
        student: The student's outputs, with gradient.
        teacher: The teacher's outputs, where the loss reads them.
        progress: Where training stands.
        seed: The run's seed; random draws of the terms come from it.
        views: Further augmented views.
        episodes: The batch consists of so many equal parts whose classes have nothing in common.
    """
    targets = distiller.targets(labels, None if teacher is None else teacher.logits)
    summands, terms = distiller.summands(
        TermInputs(
            images=images,
            targets=targets,
            indices=indices,
            student=student,
            teacher=teacher,
            progress=progress,
            generator=generator(seed, "terms", *progress.stream),
            views=views or {},
            episodes=episodes,
        )
    )
    # Means of images, not images: the guard keeps these for several steps.
    tensors = {"image means": images.mean(dim=(1, 2, 3)), "student logits": student.logits.detach()}
    if teacher is not None:
        tensors["teacher logits"] = teacher.logits
    supervised, distilled = apart(summands)
    loss = torch.stack(list(summands.values())).sum()
    return StepOutput(loss, terms, len(images), tensors, supervised, distilled)
