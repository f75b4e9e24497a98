"""Few-shot accuracy of an encoder on the episodes of some splits, each image embedded once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gda.data.dataset import ImageSplit
from gda.data.few_shot.episodes import EpisodeSampler, query_targets
from gda.data.few_shot.source import FewShotDataset
from gda.data.loader import TensorLoader
from gda.tasks.embeddings import embed, evaluate_episodes
from gda.tasks.episode_metrics import confidence_interval, nearest_centroid_accuracy
from gda.tasks.metrics import Metrics

Classify = Callable[[Tensor, Tensor], Tensor]
"""Features of shots ``(episodes, way, shot, width)`` and of queries ``(episodes, queries, width)`` to logits
``(episodes, queries, way)``."""


@dataclass(frozen=True)
class Episodes:
    """Which episodes an encoder is judged on.

    Attributes:
        way: Classes in an episode.
        shots: Known images of each class; every number is an evaluation of its own, the first is the one
            that epochs and runs are judged by.
        query: Images of each class to classify.
        episodes_per_batch: Episodes in a batch.
        batches: Batches in one evaluation.
        seed: Decides the episodes; the same for all runs, so that they can be compared.
    """

    way: int
    shots: tuple[int, ...]
    query: int
    episodes_per_batch: int
    batches: int
    seed: int

    def sampler(self, split: ImageSplit, classes: Sequence[str], shot: int) -> EpisodeSampler:
        """Draws such episodes from a split (see :class:`gda.data.few_shot.episodes.EpisodeSampler`)."""
        return EpisodeSampler(
            split.targets,
            self.way,
            shot,
            self.query,
            self.episodes_per_batch,
            self.batches,
            self.seed,
            classes=classes,
        )


class EpisodeEvaluation:
    """Evaluates encoders on the same episodes, whenever it is asked.

    Args:
        dataset: Its splits ``validation``, where there is one, and ``test`` are evaluated.
        loader: Makes an evaluation loader of a split.
        episodes: The episodes.
    """

    def __init__(
        self, dataset: FewShotDataset, loader: Callable[[ImageSplit], TensorLoader], episodes: Episodes
    ) -> None:
        self.episodes = episodes
        splits = {
            "validation": (dataset.validation, dataset.validation_classes),
            "test": (dataset.test, dataset.test_classes),
        }
        self._loaders: dict[str, TensorLoader] = {}
        self._samplers: dict[str, dict[int, EpisodeSampler]] = {}
        self._positions: dict[str, Tensor] = {}
        for name, (split, classes) in splits.items():
            if split is None:
                continue
            samplers = {shot: episodes.sampler(split, classes, shot) for shot in episodes.shots}
            self._loaders[name], self._samplers[name] = loader(split), samplers
            # Only images that occur are embedded, in ascending order.
            self._positions[name] = torch.cat([each.positions() for each in samplers.values()]).unique()

    def embed(self, encoder: nn.Module) -> dict[str, Tensor]:
        """Returns the features of each split's images that occur in episodes, by the split's name."""
        return {name: embed(encoder, loader, self._positions[name]) for name, loader in self._loaders.items()}

    def accuracies(self, features: Mapping[str, Tensor], metric: str = "cos") -> dict[str, float]:
        """Classifies by the nearest mean shot.

        Args:
            features: As from :meth:`embed`.
            metric: ``cos`` or ``sqr``.

        Returns:
            ``SPLIT_Kshot``, a mean in percent, and ``SPLIT_Kshot_interval``, half the width of its 95 %
            interval over episodes.
        """
        figures: dict[str, float] = {}
        for split, samplers in self._samplers.items():
            for shot, sampler in samplers.items():
                shares = evaluate_episodes(
                    features[split], sampler, lambda s, q: nearest_centroid_accuracy(s, q, metric)
                )
                figures |= accuracy_figures(f"{split}_{shot}shot", shares)
        return figures

    def fidelity(
        self,
        features: Mapping[str, Tensor],
        classify: Classify,
        teacher_features: Mapping[str, Tensor] | None = None,
        teacher_classify: Classify | None = None,
    ) -> dict[str, float]:
        """Holds the logits of the episodes of the first number of shots against labels and a teacher's.

        Args:
            features: As from :meth:`embed`.
            classify: Makes logits of them.
            teacher_features: The teacher's features, where there is one.
            teacher_classify: Makes logits of those.

        Returns:
            ``SPLIT_loss`` and ``SPLIT_ece``, and with a teacher ``SPLIT_agreement`` and
            ``SPLIT_teacher_kl`` (see :meth:`gda.tasks.metrics.Metrics.result`).
        """
        figures: dict[str, float] = {}
        for split, samplers in self._samplers.items():
            sampler = samplers[self.episodes.shots[0]]
            targets = query_targets(len(sampler.share), sampler.way, sampler.query).flatten()
            metrics = Metrics()
            for indices in sampler.batches():
                known = None
                if teacher_features is not None and teacher_classify is not None:
                    known = _logits(teacher_features[split], indices, sampler.shot, teacher_classify)
                logits = _logits(features[split], indices, sampler.shot, classify)
                metrics.update(logits, targets.to(logits.device), known)
            wanted = ("loss", "ece", "agreement", "teacher_kl")
            result = metrics.result("")
            figures |= {f"{split}_{name}": result[name] for name in wanted if name in result}
        return figures


def accuracy_figures(name: str, shares: Tensor) -> dict[str, float]:
    """Returns the mean of shares in percent, and half the width of its interval over episodes.

    Args:
        name: Name of the mean.
        shares: One share in [0, 1] an episode, ``(episodes,)``.
    """
    interval = confidence_interval(100.0 * shares)
    figures = {name: interval.mean}
    if interval.half_width is not None:
        figures[f"{name}_interval"] = interval.half_width
    return figures


def _logits(features: Tensor, indices: Tensor, shot: int, classify: Classify) -> Tensor:
    chosen = features[indices.to(features.device)]
    with torch.no_grad():
        return classify(chosen[:, :, :shot], chosen[:, :, shot:].flatten(1, 2)).flatten(0, 1)
