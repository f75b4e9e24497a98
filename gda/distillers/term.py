"""What a distillation term is given and what it returns."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from gda.models.tap_descriptions import TapDescription
from gda.ranks import step_position


@dataclass(frozen=True)
class ModelOutput:
    """What a model says about one batch.

    Attributes:
        logits: ``(batch, classes)``.
        features: What was tapped, by tap name; empty unless a term asks. Maps are ``(batch, channels,
            height, width)``, token maps ``(batch, tokens, width)``, vectors ``(batch, width)``.
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
        part: Part of the step, where its batch is taken in several (gradient accumulation).
        rank: Number of the process, where several train together.
    """

    epoch: int
    epochs: int
    step: int = 0
    steps: int = 1
    part: int = 0
    rank: int = 0

    @property
    def stream(self) -> tuple[str | int, ...]:
        """Names the place of random streams: every step, rank and part has draws of its own."""
        return step_position(self.epoch, self.step, self.rank, self.part)


@dataclass(frozen=True)
class View:
    """The same images, augmented once more, and what both models say about them.

    Attributes:
        images: ``(batch, 3, height, width)``.
        student: The student's outputs, with gradient.
        teacher: The teacher's outputs, without gradient; ``None`` when there is no teacher.
    """

    images: Tensor
    student: ModelOutput
    teacher: ModelOutput | None


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
        temperature: Temperature that a plug-in sets, a number or a tensor with gradient; ``None`` leaves
            a term its own.
        episodes: The batch consists of so many equal consecutive parts whose classes are others: class 0
            of one episode is not class 0 of the next.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    student: ModelOutput
    teacher: ModelOutput | None
    progress: Progress
    generator: torch.Generator
    views: Mapping[str, View] = field(default_factory=dict)
    temperature: float | Tensor | None = None
    episodes: int = 1

    @property
    def teacher_logits(self) -> Tensor:
        """The teacher's logits, ``(batch, classes)``.

        Raises:
            ValueError: There is no teacher. The config check refuses such a config before.
        """
        if self.teacher is None:
            raise ValueError("this term needs a teacher, and the run has none")
        return self.teacher.logits

    def by_episode(self) -> "list[TermInputs]":
        """Returns the inputs of each episode on its own, in order.

        Raises:
            ValueError: The batch does not consist of so many equal parts.
        """
        if len(self.student.logits) % self.episodes:
            raise ValueError(f"{len(self.student.logits)} samples are not {self.episodes} equal episodes")

        def parts(values: Tensor) -> tuple[Tensor, ...]:
            return values.tensor_split(self.episodes)

        def of_models(output: ModelOutput) -> list[ModelOutput]:
            features = {name: parts(each) for name, each in output.features.items()}
            return [
                ModelOutput(logits, {name: each[place] for name, each in features.items()})
                for place, logits in enumerate(parts(output.logits))
            ]

        def of_view(view: View) -> list[View]:
            teacher = [None] * self.episodes if view.teacher is None else of_models(view.teacher)
            return [
                View(*each) for each in zip(parts(view.images), of_models(view.student), teacher, strict=True)
            ]

        teachers = [None] * self.episodes if self.teacher is None else of_models(self.teacher)
        views = {name: of_view(view) for name, view in self.views.items()}
        return [
            replace(
                self,
                images=images,
                targets=targets,
                indices=indices,
                student=student,
                teacher=teachers[place],
                views={name: each[place] for name, each in views.items()},
                episodes=1,
            )
            for place, (images, targets, indices, student) in enumerate(
                zip(
                    parts(self.images),
                    parts(self.targets),
                    parts(self.indices),
                    of_models(self.student),
                    strict=True,
                )
            )
        ]

    def temperature_or(self, own: float) -> float | Tensor:
        """Returns the temperature that a plug-in sets, else a term's own."""
        return own if self.temperature is None else self.temperature


@dataclass(frozen=True)
class RunFacts:
    """Facts of a run that a term may read once, before training.

    Attributes:
        classes: Number of classes.
        train_size: Number of training images.
        labels: Label of every training image, ``(train_size,)``; ``None`` in label-free training, and in
            the check of a config, which reads no image.
        student_features: What the student's taps give, by tap name.
        teacher_features: What the teacher's taps give, by tap name.
        student: The student, unwrapped. A term must not keep it as a submodule.
        teacher: The teacher, unwrapped; ``None`` when there is no teacher. In the check of a config both
            are of the right shape, but of random or no weights.
        training_batches: Makes the batches of one pass over the training images, in the split's order and
            as images are in evaluation, on the teacher's device: images ``(batch, 3, height, width)`` and
            labels ``(batch,)``, which are ``None`` in label-free training. Nothing is done unless it is
            called; ``None`` in the check of a config.
    """

    classes: int
    train_size: int
    labels: Tensor | None = None
    student_features: Mapping[str, TapDescription] = field(default_factory=dict)
    teacher_features: Mapping[str, TapDescription] = field(default_factory=dict)
    student: nn.Module | None = None
    teacher: nn.Module | None = None
    training_batches: Callable[[], Iterator[tuple[Tensor, Tensor | None]]] | None = None


class Term(nn.Module):
    """One summand of the training loss: gets a batch, returns one unweighted scalar.

    A term may own parameters and buffers (projectors, memory banks), made at construction or in
    :meth:`setup`, where shapes are known: they are trained with the student and saved in the
    checkpoint. Its weight and warm-up are applied by the distiller.

    A subclass overrides :meth:`forward`, and declares what it needs:

    Attributes:
        needs_teacher: Whether the term reads the teacher's outputs.
        student_features: Taps of the student (:mod:`gda.models.taps`), e.g. ``("stage3", "pooled")``.
        teacher_features: Taps of the teacher.
        needs_views: Names of further augmented views of each image, on which both models are run.
        takes_plugins: Whether plug-ins (:mod:`gda.distillers.plugin`) may change the logits and the
            temperature that the term sees; it must then honour ``TermInputs.temperature``.
        sample_wise: Whether the loss is the mean over samples of losses that depend on one sample each.
        needs_fixed_classes: Whether a class must mean the same in every batch.
        sums_over_batch: Whether the loss grows with the batch, as a sum over samples does.
        kind: What the term compares, for the listing: ``logit``, ``feature``, ``relation``, ...
        paper: arXiv number, or venue and year, for the listing.
    """

    needs_teacher: ClassVar[bool] = True
    needs_views: ClassVar[tuple[str, ...]] = ()
    takes_plugins: ClassVar[bool] = False
    sample_wise: ClassVar[bool] = False
    needs_fixed_classes: ClassVar[bool] = False
    kind: ClassVar[str] = "own"
    paper: ClassVar[str] = ""

    def __init__(self) -> None:
        super().__init__()
        self.student_features: tuple[str, ...] = ()
        self.teacher_features: tuple[str, ...] = ()
        self.sums_over_batch = False

    def refusals(self, facts: RunFacts) -> list[str]:
        """Says in sentences why the term can't serve this pair of models; empty when it can.

        The check of a config asks this before anything runs.

        Args:
            facts: The run's facts; there are no labels, and the models hold no trained weights.
        """
        return []

    def setup(self, facts: RunFacts) -> None:
        """Reads facts of the run once, before training; makes what needs shapes.

        Torch's global generator is seeded for this term alone when it is called. Does nothing by default.
        """

    def forward(self, inputs: TermInputs) -> Tensor:
        """Returns the unweighted scalar loss of this batch.

        Args:
            inputs: The batch with student and teacher outputs.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(inputs)")
