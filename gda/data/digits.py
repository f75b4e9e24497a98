"""The embedded default: 1,797 real handwritten digits that ship with scikit-learn."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from gda.data.dataset import ImageSplit, allocate, choose
from gda.data.resample import resize
from gda.data.source import ImageSource, Inventory
from gda.ranges import Range
from gda.seeding import generator

COUNTS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
"""Images of the digits 0 to 9."""


@dataclass(frozen=True, kw_only=True)
class Digits(ImageSource):
    """8x8 grey images of ten digits, enlarged (bilinear) and repeated over three channels.

    900 images are for testing, stratified and the same whatever the options, 897 for training.
    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998.

    Args:
        image_size: Height and width of the enlarged images in pixels.
    """

    TEST_SIZE: ClassVar[int] = 900

    image_size: Annotated[int, Range(minimum=8, maximum=256)] = 8

    def inventory(self) -> Inventory:
        """Returns the known counts."""
        test = allocate(COUNTS, self.TEST_SIZE)
        train = tuple(count - tested for count, tested in zip(COUNTS, test, strict=True))
        return Inventory(self.image_size, train, self.TEST_SIZE)

    def read(self) -> tuple[tuple[str, ...], ImageSplit, ImageSplit]:
        """Reads the images that are part of the scikit-learn installation."""
        from sklearn.datasets import load_digits  # slow to import

        pixels, labels = load_digits(return_X_y=True)
        grey = torch.from_numpy(pixels).reshape(-1, 1, 8, 8) * (255 / 16)  # values are 0 to 16
        images = grey.round().to(torch.uint8).expand(-1, 3, -1, -1)
        targets = torch.from_numpy(labels).long()
        digits = ImageSplit(resize(images, self.image_size, self.image_size), targets)
        # Not split_seed: results with different held-out images stay comparable on one test set.
        test = choose(targets, self.TEST_SIZE, 0, generator(0, "digits", "test"))
        return tuple("0123456789"), digits.subset(~test), digits.subset(test)
