"""What a distillation term is given and what it returns."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelOutput:
    """What a model says about one batch.

    Attributes:
        logits: ``(batch, classes)``.
        features: Tapped module outputs by module path; empty unless a term asks for them.
    """

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Where training stands. Epochs and steps count from 0.

    Attributes:
        epoch: Current epoch.
        epochs: Length of training in epochs.
        step: Current step within the epoch.
        steps: Steps in an epoch.
    """

    epoch: int
    epochs: int
    step: int = 0
    steps: int = 1


@dataclass(frozen=True)
class TermInputs:
    """One batch as a term sees it.

    Attributes:
        images: ``(batch, 3, height, width)``, augmented and normalised.
        targets: Class ids ``(batch,)`` or class probabilities ``(batch, classes)``. In label-free
            training these are the teacher's probabilities: no term sees labels then.
        indices: Position of every image in the training split, ``(batch,)``.
        student: The student's outputs, with gradient.
        teacher: The teacher's outputs, without gradient; ``None`` when there is no teacher.
        progress: Where training stands.
        generator: Random draws of the term come from here (a CPU generator of its own stream).
        views: Further augmented views of the same images, by name; empty unless a term asks.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    student: ModelOutput
    teacher: ModelOutput | None
    progress: Progress
    generator: torch.Generator
    views: dict[str, Tensor] = field(default_factory=dict)

    @property
    def teacher_logits(self) -> Tensor:
        """The teacher's logits, ``(batch, classes)``.

        Raises:
            ValueError: There is no teacher. The config check refuses such a config before.
        """
        if self.teacher is None:
            raise ValueError("this term needs a teacher, and the run has none")
        return self.teacher.logits


@dataclass(frozen=True)
class DataFacts:
    """Facts of the data set that a term may read once, before training.

    Attributes:
        classes: Number of classes.
        train_size: Number of training images.
        labels: Label of every training image, ``(train_size,)``; ``None`` in label-free training.
    """

    classes: int
    train_size: int
    labels: Tensor | None = None


class Term(nn.Module):
    """One summand of the training loss: gets a batch, returns one unweighted scalar.

    A term may own parameters and buffers (projectors, memory banks): they are trained with the
    student and saved in the checkpoint. Its weight and warm-up are applied by the distiller.

    A subclass overrides :meth:`forward`, and declares what it needs:

    Attributes:
        needs_teacher: Whether the term reads the teacher's outputs.
        student_features: Module paths of the student to tap, e.g. ``["layer3"]``.
        teacher_features: Module paths of the teacher to tap.
        needs_views: Names of further augmented views of each image.
    """

    needs_teacher: ClassVar[bool] = True
    needs_views: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.student_features: tuple[str, ...] = ()
        self.teacher_features: tuple[str, ...] = ()

    def setup(self, facts: DataFacts) -> None:
        """Reads facts of the data set once, before training. Does nothing by default."""

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch.

        Args:
            inputs: The batch with student and teacher outputs.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(inputs)")
