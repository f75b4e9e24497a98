"""Decoded images in memory, and stratified seeded shares of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gda.errors import UserError
from gda.seeding import generator


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """Decoded images of one size with their labels.

    Attributes:
        images: ``(N, 3, height, width)``, uint8, values 0 to 255.
        targets: Class ids ``(N,)``, int64.

    Raises:
        ValueError: Shapes or types are others.
    """

    images: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise ValueError(
                f"images must be uint8 (N, 3, H, W), not {self.images.dtype} {self.images.shape}"
            )
        if self.targets.dtype != torch.int64 or self.targets.shape != self.images.shape[:1]:
            raise ValueError(f"targets must be int64 (N,), not {self.targets.dtype} {self.targets.shape}")

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> "ImageSplit":
        """Returns a copy of the images at ``indices``, in that order."""
        return ImageSplit(self.images[indices], self.targets[indices])


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """A data set, ready to train on.

    Attributes:
        name: Its name in tables.
        classes: Class names; a target is a position in it.
        train: Images to train on, without the held-out ones.
        validation: The held-out share of the training images; ``None`` when nothing is held out.
        test: The test images, never trained on and never selected on; ``None`` where there are none.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSplit
    validation: ImageSplit | None
    test: ImageSplit | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def hold_out(split: ImageSplit, share: float, seed: int) -> tuple[ImageSplit, ImageSplit | None]:
    """Divides training images into those to train on and those to validate on.

    The choice depends on ``seed`` and the labels alone. Give it a fixed seed and not the run's, so
    that students and teachers of all runs never see the held-out images.

    Args:
        split: The training images.
        share: Share to hold out, in [0, 1).
        seed: Seed of the choice.

    Returns:
        The remaining images and the held-out ones (``None`` for share 0), each in original order.
        Exactly :func:`held_out_size` images are held out, of every class its share and at least one.

    Raises:
        UserError: A class has fewer than two images, or the share leaves a class without any.
    """
    if share == 0:
        return split, None
    counts = _class_counts(split.targets)
    total = held_out_size(len(split), len(counts), share)
    small = [str(label) for label, count in counts.items() if count < 2]
    if small:
        raise UserError(f"holding out images needs two of every class; too small: class {', '.join(small)}")
    held = choose(split.targets, total, 1, generator(seed, "validation split"))
    return split.subset(~held), split.subset(held)


def held_out_size(size: int, classes: int, share: float) -> int:
    """Returns how many of ``size`` images :func:`hold_out` holds out."""
    return max(round(share * size), classes) if share else 0


def take(split: ImageSplit, size: int | float, seed: int) -> ImageSplit:
    """Takes a stratified seeded subset, in original order.

    Args:
        split: The images to choose from.
        size: A whole number of images, or (a float) a share in (0, 1].
        seed: Seed of the choice.

    Returns:
        Exactly so many images, of every class its share and at least one.

    Raises:
        UserError: There are fewer images than asked for, or more classes.
    """
    total = size if isinstance(size, int) else round(size * len(split))
    return split.subset(choose(split.targets, total, 0, generator(seed, "training subset")))


def allocate(counts: Sequence[int], total: int, leave: int = 0) -> list[int]:
    """Divides ``total`` over classes in proportion to their sizes.

    Args:
        counts: Images of each class.
        total: How many images to choose.
        leave: How many images of each class must stay behind.

    Returns:
        How many of each class: at least 1, at most ``count - leave``, ``total`` together, and
        otherwise as near to the exact proportion as whole numbers can be.

    Raises:
        UserError: That is impossible.
    """
    size, most = sum(counts), [count - leave for count in counts]
    if not len(counts) <= total <= sum(most) or min(most) < 1:
        raise UserError(
            f"{total} of {size} images can't be chosen: at least one of each of the {len(counts)} classes "
            f"is needed, and {leave} of each must be left"
        )
    chosen = [min(max(count * total // size, 1), top) for count, top in zip(counts, most, strict=True)]

    def lack(label: int) -> int:  # exact, in units of 1/size images
        return counts[label] * total - chosen[label] * size

    labels = range(len(counts))
    while sum(chosen) < total:
        chosen[max((each for each in labels if chosen[each] < most[each]), key=lack)] += 1
    while sum(chosen) > total:
        chosen[min((each for each in labels if chosen[each] > 1), key=lack)] -= 1
    return chosen


def choose(targets: Tensor, total: int, leave: int, draws: torch.Generator) -> Tensor:
    """Chooses images class by class, as :func:`allocate` divides them.

    Args:
        targets: Class ids ``(N,)``.
        total: How many images to choose.
        leave: How many images of each class must stay behind.
        draws: Generator of the choice.

    Returns:
        A mask ``(N,)`` that is true for the chosen images.

    Raises:
        UserError: The classes do not hold enough images.
    """
    counts = _class_counts(targets)
    mask = torch.zeros(len(targets), dtype=torch.bool)
    for label, number in zip(counts, allocate(list(counts.values()), total, leave), strict=True):
        members = (targets == label).nonzero().flatten()
        mask[members[torch.randperm(len(members), generator=draws)[:number]]] = True
    return mask


def _class_counts(targets: Tensor) -> dict[int, int]:
    labels, counts = targets.unique(return_counts=True)
    return dict(zip(labels.tolist(), counts.tolist(), strict=True))
