"""Splits whose labels are known and whose images are still to be decoded."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gda.data.dataset import ImageSplit, choose, held_out_size
from gda.data.few_shot.pixel_cache import memory_mapped
from gda.data.resample import resize
from gda.seeding import generator

Fill = Callable[[Tensor, int, Tensor], None]
"""Decodes the images at some positions (ascending) at a size into ``(n, 3, size, size)``, uint8."""

PIECE = 256  # images resized at once


@dataclass(frozen=True, eq=False)
class UndecodedSplit:
    """The labels of a split, and the way to its images.

    Whatever is held out is chosen by the labels, before anything is decoded, so that every image is
    decoded once, into the place where it stays.

    Attributes:
        classes: Class names; a target is a position in it.
        targets: Class ids ``(N,)``, int64.
        fill: Decodes images.
        rows: Positions of this split's images in what ``fill`` reads, ascending.
    """

    classes: tuple[str, ...]
    targets: Tensor
    fill: Fill
    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    @classmethod
    def of_all(cls, classes: tuple[str, ...], targets: Tensor, fill: Fill) -> "UndecodedSplit":
        """Returns the split of all images that ``fill`` reads."""
        return cls(classes, targets, fill, torch.arange(len(targets)))

    def __len__(self) -> int:
        return len(self.targets)

    def counts(self) -> list[int]:
        """Returns the number of images of each class."""
        return self.targets.bincount(minlength=len(self.classes)).tolist()

    def classes_with_images(self) -> list[str]:
        """Returns the names of the classes that have images."""
        return [name for name, count in zip(self.classes, self.counts(), strict=True) if count]

    def subset(self, chosen: Tensor) -> "UndecodedSplit":
        """Returns the images for which the mask ``chosen`` is true."""
        return UndecodedSplit(self.classes, self.targets[chosen], self.fill, self.rows[chosen])

    def only(self, wanted: list[int]) -> "UndecodedSplit":
        """Returns the images of some classes, which are numbered in the order given."""
        numbers = torch.full((len(self.classes),), -1)
        numbers[wanted] = torch.arange(len(wanted))
        kept = self.subset(numbers[self.targets] >= 0)
        classes = tuple(self.classes[number] for number in wanted)
        return UndecodedSplit(classes, numbers[kept.targets], self.fill, kept.rows)

    def hold_out(
        self, share: float, leave: int, seed: int, stream: str
    ) -> tuple["UndecodedSplit", "UndecodedSplit | None"]:
        """Divides off a share of every class, as :func:`gda.data.dataset.hold_out` does.

        Args:
            share: Share of the images, in [0, 1).
            leave: Images of each class that must remain.
            seed: Seed of the choice.
            stream: Name of the random stream.

        Returns:
            The remaining images and the held-out ones (``None`` for share 0).

        Raises:
            UserError: The classes do not hold enough images.
        """
        if share == 0:
            return self, None
        total = held_out_size(len(self), len(self.classes), share)
        held = choose(self.targets, total, leave, generator(seed, stream))
        return self.subset(~held), self.subset(held)

    def nbytes(self, size: int) -> int:
        """Returns what the decoded images take, in bytes."""
        return len(self) * 3 * size * size

    def decode(self, size: int, cache: Path | None = None) -> ImageSplit:
        """Decodes the images.

        Args:
            size: Height and width in pixels.
            cache: File that they are kept in, memory-mapped; read when it is there already. ``None``
                keeps them in memory.

        Raises:
            UserError: Images can't be read, or the file can't be written.
        """
        shape = (len(self), 3, size, size)

        def fill(images: Tensor) -> None:
            self.fill(self.rows, size, images)

        if cache is not None:
            return ImageSplit(memory_mapped(cache, shape, fill), self.targets)
        images = torch.empty(shape, dtype=torch.uint8)
        fill(images)
        return ImageSplit(images, self.targets)


def store(pixels: np.ndarray, size: int, images: Tensor) -> None:
    """Puts pixels as files hold them where they stay, resized as Pillow resizes (bilinear).

    Args:
        pixels: ``(n, s, s, 3)``, uint8.
        size: Height and width wanted, in pixels.
        images: ``(n, 3, size, size)``, uint8; overwritten.
    """
    for first in range(0, len(pixels), PIECE):
        piece = torch.tensor(pixels[first : first + PIECE]).permute(0, 3, 1, 2)
        images[first : first + PIECE] = resize(piece, size, size)
