"""The embedded few-shot default: the digits 0 to 4 to train on, 5 to 9 to test on."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gda.data.digits import COUNTS, Digits
from gda.data.few_shot.listing import FewShotListing
from gda.data.few_shot.source import FewShotSource, HeldOut, Pixels
from gda.data.few_shot.undecoded import UndecodedSplit
from gda.data.resample import resize


@dataclass(frozen=True, kw_only=True)
class DigitsFewShot(FewShotSource):
    """The handwritten digits that ship with scikit-learn, as in :class:`gda.data.digits.Digits`.

    Five base classes and five novel ones; there are no classes left to validate on, so that episodes
    for validation are drawn from held-out images of the base classes.

    Args:
        image_size: Height and width of the enlarged images in pixels; 8 keeps them as they are.
        validation: Share of the base images that is held out for validation.
        base_test: Share of the base images that is held out for the accuracy on base classes.
    """

    BASE: ClassVar[int] = 5

    image_size: Pixels = 8
    validation: HeldOut = 0.2
    base_test: HeldOut = 0.2

    def listing(self) -> FewShotListing:
        """Returns the known counts."""
        targets = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
        digits = UndecodedSplit.of_all(tuple("0123456789"), targets, _fill)
        base, novel = list(range(self.BASE)), list(range(self.BASE, len(COUNTS)))
        return FewShotListing(digits.only(base), digits.only(novel))


def _fill(rows: Tensor, size: int, images: Tensor) -> None:
    """Reads the images at positions in the order of their classes."""
    _, train, test = Digits(name="digits", mean=(0.5,) * 3, std=(0.5,) * 3).read()
    targets = torch.cat([train.targets, test.targets])
    pixels = torch.cat([train.images, test.images])
    images[:] = resize(pixels[targets.argsort(stable=True)[rows]], size, size)
