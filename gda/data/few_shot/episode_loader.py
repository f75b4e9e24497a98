"""Batches of episodes from images that are already decoded, by index."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gda.data.dataset import ImageSplit
from gda.data.few_shot.episodes import EpisodeSampler, query_targets, split_shot_query
from gda.data.pipeline import Pipeline
from gda.data.transforms import Transform
from gda.seeding import generator


@dataclass(frozen=True, eq=False)
class EpisodeBatch:
    """Some episodes on the device.

    Attributes:
        shots: Images ``(episodes, way, shot, 3, height, width)``, float32, augmented and normalised.
        queries: Images ``(episodes, way * query, 3, height, width)``, likewise, class by class.
        targets: Classes of the queries within their episode, ``(episodes, way * query)``, int64.
        indices: Position of every image in the split, ``(episodes, way, shot + query)``, int64.
        total: Queries of the step on all ranks; left out, those of this batch.
    """

    shots: Tensor
    queries: Tensor
    targets: Tensor
    indices: Tensor
    total: int = 0

    def __post_init__(self) -> None:
        if not self.total:
            object.__setattr__(self, "total", len(self))

    def __len__(self) -> int:
        """Number of queries: the images that the loss is a mean over."""
        return self.targets.numel()

    def parts(self, count: int) -> "list[EpisodeBatch]":
        """Splits the batch into consecutive parts of whole episodes, as :meth:`gda.data.loader.Batch.parts`.

        Args:
            count: Number of parts.

        Raises:
            ValueError: There are fewer episodes than parts.
        """
        if count == 1:
            return [self]
        episodes = len(self.targets)
        if episodes < count:
            raise ValueError(f"a batch of {episodes} episodes can't be split into {count} parts")
        tensors = (self.shots, self.queries, self.targets, self.indices)
        split = zip(*(values.tensor_split(count) for values in tensors), strict=True)
        return [
            EpisodeBatch(shots, queries, targets, indices, self.total)
            for shots, queries, targets, indices in split
        ]


class EpisodeLoader:
    """Makes the episodes of a split, without worker processes and without state.

    As with :class:`gda.data.loader.TensorLoader`, any batch of any epoch can be made on its own. The
    augmentation of an episode depends on seed, epoch, step and the episode's place in the batch of all
    processes, so that it is the same however many of them share the batch.

    Args:
        split: The images.
        sampler: Draws the episodes, from the targets of ``split``.
        transforms: Named transforms, applied in order; see :mod:`gda.data.transforms`.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
        device: Where batches are made.
        resident: Keep the whole split on the device. Otherwise it stays in the computer's memory and
            each batch is copied over.

    Raises:
        ValueError: The sampler was made for other targets.
    """

    def __init__(
        self,
        split: ImageSplit,
        sampler: EpisodeSampler,
        transforms: Mapping[str, Transform | None],
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        resident: bool = True,
    ) -> None:
        if not torch.equal(split.targets.cpu(), sampler.targets):
            raise ValueError("the sampler draws from other targets than those of the split")
        self.device = torch.device(device)
        self.sampler = sampler
        self.pipeline = Pipeline(transforms, mean, std).to(self.device)
        self.images = split.images.to(self.device if resident else "cpu")
        share = len(sampler.share)
        self._targets = query_targets(share, sampler.way, sampler.query).to(self.device)

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self.sampler)

    def batch(self, epoch: int, step: int) -> EpisodeBatch:
        """Makes one batch.

        Args:
            epoch: The epoch, from 0.
            step: The batch within it, from 0.
        """
        indices = self.sampler.batch(epoch, step)
        if self.pipeline.random:
            images = torch.stack(
                [
                    self._images(positions, epoch, step, episode)
                    for positions, episode in zip(indices, self.sampler.share, strict=True)
                ]
            )
        else:
            images = self._images(indices, epoch, step, self.sampler.share.start)
        shots, queries = split_shot_query(images, self.sampler.shot)
        total = self.sampler.episodes_per_batch * self._targets.shape[1]
        return EpisodeBatch(shots, queries, self._targets, indices.to(self.device), total)

    def batches(self, epoch: int = 0, start_step: int = 0) -> Iterator[EpisodeBatch]:
        """Makes the batches of one epoch.

        Args:
            epoch: The epoch, from 0.
            start_step: First batch to make; the batches are the same wherever one starts.
        """
        for step in range(start_step, len(self)):
            yield self.batch(epoch, step)

    def _images(self, positions: Tensor, epoch: int, step: int, episode: int) -> Tensor:
        """Returns the images at ``positions`` as the model sees them, with the shape of ``positions``."""
        chosen = self.images[positions.flatten().to(self.images.device)]
        if chosen.device != self.device:
            chosen = chosen.pin_memory() if self.device.type == "cuda" else chosen
            chosen = chosen.to(self.device, non_blocking=True)
        draws = generator(self.sampler.seed, "augmentation", epoch, step, episode)
        return self.pipeline(chosen, draws).unflatten(0, positions.shape)
