"""Classifier-Baseline: an encoder with a head learns the base classes, and is judged on novel ones.

Chen et al., "Meta-Baseline", arXiv 2003.04390, section 3.1: after training the head is left out, and an
episode's queries are classified by the cosine of their features to the mean features of the shots.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import nn

from gda.config.schema import Recipe
from gda.config.task_needs import TaskNeeds
from gda.data.dataset import ImageSplit
from gda.data.few_shot.source import FewShotDataset, FewShotSource
from gda.data.loader import Batch, TensorLoader
from gda.data.transforms import Transform
from gda.distillers.distiller import Distiller
from gda.distillers.term import Progress
from gda.models.pooled_features import encoder_of
from gda.ranges import NonNegative, Range
from gda.tasks.classification import ClassificationTask
from gda.tasks.episode_evaluation import EpisodeEvaluation, Episodes
from gda.tasks.few_shot_figure import few_shot_figure
from gda.tasks.task import Figure, StepOutput

Whole = Annotated[int, Range(minimum=1)]


class FewShotClassifierTask:
    """Classification of the base classes, with a look at novel classes every few epochs.

    Args:
        student: The model that is trained: an encoder with a head; on ``device``.
        teacher: A model that guides it, with a head for the same classes; on ``device``.
        distiller: The loss, on the logits of the base classes.
        dataset: The images.
        recipe: Batch sizes and the number of epochs.
        train_transforms: Named transforms of training images.
        test_transforms: Named transforms of all other images.
        seed: The run's seed.
        device: Where batches are made.
        channels_last: Memory format of the batches.
        view_transforms: Further named transforms of each named view of training images.
        way: Classes in an episode.
        shots: Known images of each class; each number is an evaluation of its own, and the first one
            chooses the best epoch.
        query: Images of each class to classify.
        episodes_per_batch: Episodes in a batch.
        batches: Batches in one evaluation of a split.
        episode_seed: Decides the episodes of all evaluations; not the run's seed, so that all runs are
            judged on the same ones.
        evaluate_every: Epochs between two evaluations on episodes; the last epoch is always evaluated.
    """

    needs: ClassVar[TaskNeeds] = TaskNeeds(source=FewShotSource, makes="classifier")

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        distiller: Distiller,
        dataset: FewShotDataset,
        recipe: Recipe,
        train_transforms: Mapping[str, Transform],
        test_transforms: Mapping[str, Transform],
        seed: int,
        device: torch.device,
        channels_last: bool = True,
        view_transforms: Mapping[str, Mapping[str, Transform]] | None = None,
        way: Annotated[int, Range(minimum=2)] = 5,
        shots: Sequence[Whole] = (1, 5),
        query: Whole = 15,
        episodes_per_batch: Whole = 4,
        batches: Whole = 200,
        episode_seed: Annotated[int, NonNegative] = 0,
        evaluate_every: Whole = 5,
    ) -> None:
        self.base = ClassificationTask(
            student,
            teacher,
            distiller,
            dataset.base_classification(),
            recipe,
            train_transforms,
            test_transforms,
            seed,
            device,
            channels_last,
            view_transforms,
            prefix="base_",
        )
        self.student, self.teacher = student, teacher
        self.modules, self.steps = self.base.modules, self.base.steps
        self.evaluate_every = evaluate_every
        self.figure = few_shot_figure(way, shots)

        def loader(split: ImageSplit) -> TensorLoader:
            return TensorLoader(
                split,
                recipe.evaluation_batch_size,
                test_transforms,
                dataset.mean,
                dataset.std,
                device=device,
                channels_last=channels_last,
            )

        episodes = Episodes(way, tuple(shots), query, episodes_per_batch, batches, episode_seed)
        self.novel = EpisodeEvaluation(dataset, loader, episodes)

    @staticmethod
    def figure_of(options: Mapping[str, Any]) -> Figure:
        """Returns the accuracy with the first number of shots."""
        return few_shot_figure(options["way"], options["shots"])

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the training batches of an epoch (see :class:`gda.data.loader.TensorLoader`)."""
        yield from self.base.batches(epoch, start_step)

    def training_step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Returns the loss of one batch of base images."""
        return self.base.training_step(batch, progress)

    def evaluate(self, student: nn.Module, progress: Progress) -> dict[str, float]:
        """Returns figures on held-out base images and, where it is due, accuracies on episodes."""
        figures = self.base.evaluate(student, progress)
        epoch = progress.epoch + 1
        if epoch % self.evaluate_every == 0 or epoch == progress.epochs:
            figures |= self.novel.accuracies(self.novel.embed(encoder_of(student)))
        return figures

    def evaluate_teacher(self) -> dict[str, float]:
        """Returns the teacher's own figures, before any training; empty without a teacher."""
        if self.teacher is None:
            return {}
        found = self.novel.accuracies(self.novel.embed(encoder_of(self.teacher)))
        return self.base.evaluate_teacher() | {f"teacher_{name}": value for name, value in found.items()}
