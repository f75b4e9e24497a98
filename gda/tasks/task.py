"""The task: the unit of meaning that the trainer drives without knowing what it is about."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor, nn

from gda.config.task_needs import TaskNeeds
from gda.distillers.term import Progress

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class StepOutput:
    """What one training step yields.

    Attributes:
        loss: The weighted sum that is minimised, a scalar with gradient.
        terms: Unweighted terms by name, scalars without gradient.
        images: Number of images in the step.
        tensors: Small tensors of the batch that explain a failure, such as the logits.
        supervised: The supervised summand of the loss, with gradient; ``None`` where there is none.
        distilled: The sum of all others, with gradient; ``None`` where there are none.
    """

    loss: Tensor
    terms: Mapping[str, Tensor]
    images: int
    tensors: Mapping[str, Tensor]
    supervised: Tensor | None = None
    distilled: Tensor | None = None

    def detached(self) -> "StepOutput":
        """Returns the same without the autograd graph."""
        return replace(self, loss=self.loss.detach(), supervised=None, distilled=None)


@dataclass(frozen=True)
class Figure:
    """The figure that a task is judged by.

    Attributes:
        name: What follows ``validation_`` and ``test_`` in the journal, e.g. ``top1``.
        text: The same in words, e.g. ``top-1 accuracy``.
    """

    name: str
    text: str


class Task(Protocol, Generic[BatchT]):
    """What the trainer needs to know of a task.

    Attributes:
        needs: What it is built from.
        figure: What it is judged by.
        student: The model that is trained, averaged and reported.
        modules: Everything that is trained, the student first; saved in the checkpoint.
        steps: Training steps in an epoch.
    """

    needs: ClassVar[TaskNeeds]
    figure: Figure
    student: nn.Module
    modules: Mapping[str, nn.Module]
    steps: int

    @staticmethod
    def figure_of(options: Mapping[str, Any]) -> Figure:
        """Returns what a task of these options is judged by."""
        ...

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[BatchT]:
        """Yields the training batches of ``epoch``; the same ones whenever it is asked.

        Where several processes train together, the share of this one. Such a batch, or one that is taken in
        parts (``trainer.accumulation``), has a length, the ``total`` of all shares, and ``parts(count)``, as
        :class:`gda.data.loader.Batch` has.
        """
        ...

    def training_step(self, batch: BatchT, progress: Progress) -> StepOutput:
        """Returns the loss of one batch; does not touch the optimiser."""
        ...

    def evaluate(self, student: nn.Module, progress: Progress) -> dict[str, float]:
        """Returns the metrics of ``student`` on held-out and test data, e.g. ``test_top1``.

        Args:
            student: The model, or its moving average.
            progress: The epoch that has just been trained.
        """
        ...

    def evaluate_teacher(self) -> dict[str, float]:
        """Returns the teacher's metrics, ``teacher_test_top1`` and so on; empty without a teacher."""
        ...
