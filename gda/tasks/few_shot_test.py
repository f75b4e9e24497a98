"""The test of a finished few-shot student: accuracies on many episodes of the novel classes.

As published (Chen et al., arXiv 2003.04390): 8,000 episodes in batches of four, nearest mean shot. Beside it
a logistic regression on the shots as a second reading of the same features, the area under the ROC curve
of telling one class from another, and for a classifier its accuracy on held-out images of the base classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gda.config.schema import Recipe
from gda.config.task_needs import TaskNeeds
from gda.data.dataset import ImageSplit
from gda.data.few_shot.episodes import EpisodeSampler
from gda.data.few_shot.source import FewShotDataset, FewShotSource
from gda.data.loader import TensorLoader
from gda.data.transforms import Transform
from gda.models.pooled_features import encoder_of
from gda.ranges import NonNegative, Range
from gda.ranks import rank, rank_count
from gda.tasks.embeddings import Score, embed, evaluate_episodes
from gda.tasks.episode_evaluation import Episodes, accuracy_figures
from gda.tasks.episode_metrics import (
    batch_means,
    confidence_interval,
    logistic_regression_accuracy,
    nearest_centroid_accuracy,
    single_class_auc,
)
from gda.tasks.few_shot_figure import few_shot_figure
from gda.tasks.metrics import Metrics
from gda.tasks.task import Figure

Whole = Annotated[int, Range(minimum=1)]


@dataclass
class TestFigures:
    """What a test has measured.

    Attributes:
        figures: Means in percent and half-widths of their 95 % intervals, by name.
        episodes: Shares in [0, 1] of each episode, ``(episodes,)``, float64, by name.
        fingerprints: What identifies the episodes behind each of them.
    """

    __test__: ClassVar[bool] = False  # not one of pytest's

    figures: dict[str, float] = field(default_factory=dict)
    episodes: dict[str, Tensor] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, shares: Tensor, sampler: EpisodeSampler) -> None:
        """Adds a figure of each episode with its mean and interval."""
        self.figures |= accuracy_figures(name, shares)
        self.episodes[name] = shares
        self.fingerprints[name] = f"{sampler.fingerprint}:{len(shares)}"


class FewShotTest:
    """Measures a student that was trained before; learns nothing.

    Args:
        student: The student: an encoder, or an encoder with its head; on ``device``.
        has_head: Whether it has its head, with which it can classify the base classes.
        dataset: The images.
        recipe: The batch size of evaluation.
        test_transforms: Named transforms of the images.
        device: Where batches are made.
        channels_last: Memory format of the batches.
        way: Classes in an episode.
        shots: Known images of each class; each number is a test of its own.
        query: Images of each class to classify.
        episodes_per_batch: Episodes in a batch, over which the published interval averages first.
        batches: Batches; 2,000 of four as published.
        episode_seed: Decides the episodes; runs of equal numbers are tested on identical ones.
        metric: ``cos`` or ``sqr``; ``None`` takes that of the tested stage, and the cosine where it has none.
        auc: Whether to measure the area under the ROC curve, on episodes of two classes.
        probe: Whether to fit a logistic regression to the shots of an episode, too.
        probe_batches: Batches of the episodes that it is fitted to, at most ``batches``: it is slow.
        stage: Task node of the tested run.
    """

    needs: ClassVar[TaskNeeds] = TaskNeeds(source=FewShotSource, head=False, encoder=True, trains=False)

    def __init__(
        self,
        student: nn.Module,
        has_head: bool,
        dataset: FewShotDataset,
        recipe: Recipe,
        test_transforms: Mapping[str, Transform],
        device: torch.device,
        channels_last: bool = True,
        way: Annotated[int, Range(minimum=2)] = 5,
        shots: Sequence[Whole] = (1, 5),
        query: Whole = 15,
        episodes_per_batch: Whole = 4,
        batches: Whole = 2000,
        episode_seed: Annotated[int, NonNegative] = 0,
        metric: Literal["cos", "sqr"] | None = None,
        auc: bool = True,
        probe: bool = True,
        probe_batches: Whole = 200,
        stage: Mapping[str, Any] | None = None,
    ) -> None:
        self.student, self.has_head = student.eval(), has_head
        self.dataset = dataset
        self.metric = metric or (stage or {}).get("metric", "cos")
        self.auc, self.probe = auc, probe
        self.shots = tuple(shots)
        self._episodes = Episodes(way, self.shots, query, episodes_per_batch, batches, episode_seed)
        self._pairs = Episodes(2, self.shots, query, episodes_per_batch, batches, episode_seed)
        self._probed = Episodes(
            way, self.shots, query, episodes_per_batch, min(probe_batches, batches), episode_seed
        )
        self.figure = few_shot_figure(way, shots)
        self._loader: Callable[[ImageSplit], TensorLoader] = partial(
            TensorLoader,
            batch_size=recipe.evaluation_batch_size,
            transforms=test_transforms,
            mean=dataset.mean,
            std=dataset.std,
            device=device,
            channels_last=channels_last,
        )

    @staticmethod
    def figure_of(options: Mapping[str, Any]) -> Figure:
        """Returns the accuracy with the first number of shots."""
        return few_shot_figure(options["way"], options["shots"])

    def measure(self) -> TestFigures:
        """Embeds the test images once, and scores all episodes from the features.

        Returns:
            For each number of shots ``k``: ``test_kshot``, its interval over episodes and, as
            ``test_kshot_batch_interval``, the published one over the means of batches;
            ``test_kshot_auc`` and ``test_kshot_probe`` with their intervals. For a classifier with
            held-out base images, ``base_test_top1`` in percent.
        """
        test, classes = self.dataset.test, self.dataset.test_classes
        features = embed(encoder_of(self.student), self._loader(test))
        found = TestFigures()
        nearest = partial(nearest_centroid_accuracy, metric=self.metric)
        for shot in self.shots:
            name = f"test_{shot}shot"
            readings: list[tuple[str, Episodes, Score]] = [(name, self._episodes, nearest)]
            if self.auc:
                readings.append((f"{name}_auc", self._pairs, single_class_auc))
            if self.probe:
                readings.append((f"{name}_probe", self._probed, logistic_regression_accuracy))
            for reading, episodes, score in readings:
                sampler = episodes.sampler(test, classes, shot)
                found.add(reading, evaluate_episodes(features, sampler, score), sampler)
            means = batch_means(found.episodes[name], self._episodes.episodes_per_batch)
            published = confidence_interval(100.0 * means).half_width
            if published is not None:
                found.figures[f"{name}_batch_interval"] = published
        return TestFigures(found.figures | self._base_accuracy(), found.episodes, found.fingerprints)

    def _base_accuracy(self) -> dict[str, float]:
        """Returns a classifier's accuracy on the held-out base images, where both are there."""
        base = self.dataset.base_test
        if base is None or not self.has_head:
            return {}
        metrics = Metrics()
        with torch.inference_mode():
            for _, batch in self._loader(base).share(rank(), rank_count()):
                metrics.update(self.student(batch.images), batch.targets)
        return {"base_test_top1": metrics.over_ranks().result("")["top1"]}
