"""Batches from images that are already decoded; any step of any epoch can be made on its own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gda.data.dataset import ImageSplit
from gda.data.pipeline import Pipeline
from gda.data.transforms import Transform
from gda.errors import UserError
from gda.ranks import step_position
from gda.seeding import generator


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch on the device.

    Attributes:
        images: ``(batch, 3, height, width)``, float32, augmented and normalised.
        targets: Class ids ``(batch,)``, int64.
        indices: Position of every image in the split, ``(batch,)``, int64.
        total: Images of the step on all ranks; left out, those of this batch.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    total: int = 0

    def __post_init__(self) -> None:
        if not self.total:
            object.__setattr__(self, "total", len(self))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)

    def parts(self, count: int) -> "list[Batch]":
        """Splits the batch into consecutive parts, as equal as possible, for gradient accumulation.

        A mean over the batch is the sum of the parts' means, each times ``len(part) / len(batch)``.

        Args:
            count: Number of parts.

        Raises:
            ValueError: There are fewer images than parts.
        """
        if count == 1:
            return [self]
        if len(self) < count:
            raise ValueError(f"a batch of {len(self)} images can't be split into {count} parts")
        tensors = (self.images, self.targets, self.indices)
        split = zip(*(values.tensor_split(count) for values in tensors), strict=True)
        return [Batch(images, targets, indices, self.total) for images, targets, indices in split]


class TensorLoader:
    """Makes the batches of a split, without worker processes and without state.

    The order of an epoch depends on seed and epoch alone, and the augmentation of a step on seed,
    epoch and step: a resumed run goes on where it stopped without replaying, and runs of equal seed
    see equal batches whatever else they draw.

    Args:
        split: The images.
        batch_size: Images in a batch.
        transforms: Named transforms, applied in order; see :mod:`gda.data.transforms`.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
        device: Where batches are made.
        seed: The run's seed; without effect on an evaluation.
        shuffle: True for training. False for evaluation: the split's order, no random transforms.
        drop_last: Whether an incomplete last batch is left out (in training only).
        channels_last: Memory format of the batches.
        resident: Keep the whole split on the device. Otherwise it stays in the computer's memory and
            each batch is copied over.
        view_transforms: Further transforms of each named view, applied after ``transforms``.
        rank: Number of this process, from 0.
        ranks: Number of processes that train together. Of every training batch each takes a consecutive
            share, in rank order, and draws its augmentation itself. Shares are equal, or as equal as
            possible in an incomplete last batch. ``batch_size`` is that of all together.

    Raises:
        UserError: An evaluation has random transforms, or the split does not fill one batch.
    """

    def __init__(
        self,
        split: ImageSplit,
        batch_size: int,
        transforms: Mapping[str, Transform | None],
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        channels_last: bool = False,
        resident: bool = True,
        view_transforms: Mapping[str, Mapping[str, Transform | None]] | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.device = torch.device(device)
        self.pipeline = Pipeline(transforms, mean, std).to(self.device)
        self._views = {
            view: Pipeline(
                {**transforms, **{f"{view}.{name}": each for name, each in further.items()}}, mean, std
            ).to(self.device)
            for view, further in (view_transforms or {}).items()
        }
        if not shuffle and self.pipeline.random:
            raise UserError(f"evaluation can't use random transforms: {', '.join(self.pipeline.random)}")
        if not shuffle and drop_last:
            raise UserError("evaluation takes every image: drop_last is for training")
        if drop_last and len(split) < batch_size:
            raise UserError(f"{len(split)} images do not fill one batch of {batch_size}, and drop_last is on")
        home = self.device if resident else torch.device("cpu")
        self.images, self.targets = split.images.to(home), split.targets.to(home)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.rank, self.ranks = rank, ranks
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __len__(self) -> int:
        """Number of steps in an epoch."""
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def batches(self, epoch: int = 0, start_step: int = 0) -> Iterator[Batch]:
        """Makes the batches of one epoch.

        Args:
            epoch: The epoch, from 0.
            start_step: First step to make; the steps are the same wherever one starts.
        """
        order = self._order(epoch)
        for step in range(start_step, len(self)):
            yield self._batch(order, epoch, step)

    def share(self, rank: int, ranks: int) -> Iterator[tuple[int, Batch]]:
        """Makes one process's batches of an evaluation, each with its step.

        Batches are shared, not images: every batch is the same however many processes share them.

        Args:
            rank: Number of the process, from 0.
            ranks: Number of processes; they take the batches in turn. One that comes late may have none.

        Raises:
            ValueError: The loader is one for training.
        """
        if self.shuffle:
            raise ValueError("an evaluation is shared by batches; training batches are shared by images")
        order = self._order(0)
        for step in range(rank, len(self), ranks):
            yield step, self._batch(order, 0, step)

    def view(self, indices: Tensor, name: str, epoch: int, step: int, part: int = 0) -> Tensor:
        """Augments images once more, with random draws of their own.

        Args:
            indices: Positions in the split, ``(batch,)``, as in :class:`Batch`.
            name: Name of the view; each has its own random stream, and its own further transforms
                where ``view_transforms`` has some.
            epoch: The epoch.
            step: The step within it.
            part: The part of the step, where a batch is taken in several.

        Returns:
            Images like :attr:`Batch.images`.
        """
        draws = generator(self.seed, "view", name, *step_position(epoch, step, self.rank, part))
        images = self._fetch(self.images, indices.to(self.images.device))
        pipeline = self._views.get(name, self.pipeline)
        return pipeline(images, draws).contiguous(memory_format=self.memory_format)

    def _batch(self, order: Tensor, epoch: int, step: int) -> Batch:
        whole = order[step * self.batch_size : (step + 1) * self.batch_size]
        indices = whole.tensor_split(self.ranks)[self.rank] if self.shuffle else whole
        draws = generator(self.seed, "augmentation", *step_position(epoch, step, self.rank))
        images = self._fetch(self.images, indices)
        images = self.pipeline(images, draws).contiguous(memory_format=self.memory_format)
        return Batch(images, self._fetch(self.targets, indices), indices.to(self.device), len(whole))

    def _order(self, epoch: int) -> Tensor:
        """Returns the positions of all images in the epoch's order, where the images lie."""
        if self.shuffle:
            order = torch.randperm(len(self.images), generator=generator(self.seed, "data order", epoch))
        else:
            order = torch.arange(len(self.images))
        return order.to(self.images.device)

    def _fetch(self, values: Tensor, indices: Tensor) -> Tensor:
        chosen = values[indices]
        if chosen.device != self.device:
            chosen = chosen.pin_memory() if self.device.type == "cuda" else chosen
            chosen = chosen.to(self.device, non_blocking=True)
        return chosen
