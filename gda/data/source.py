"""What every source of images has in common: its options, its facts before loading, and loading."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

from gda.data.dataset import ImageDataset, ImageSplit, held_out_size, hold_out, take
from gda.errors import UserError
from gda.ranges import NonNegative, Range


@dataclass(frozen=True)
class DatasetFacts:
    """What is known of a data set before any image is read.

    Attributes:
        classes: Number of classes.
        image_size: Height and width in pixels, before any transform.
        train_size: Images to train on, after holding out and ``train_size``.
        validation_size: Images held out.
        test_size: Test images.
    """

    classes: int
    image_size: int
    train_size: int
    validation_size: int
    test_size: int

    @property
    def evaluation_image_size(self) -> int:
        """Height and width of validation and test images: those of the training images."""
        return self.image_size


@dataclass(frozen=True)
class Inventory:
    """What a source holds, before anything is held out.

    Attributes:
        image_size: Height and width in pixels.
        train: Training images of each class.
        test_size: Test images.
    """

    image_size: int
    train: tuple[int, ...]
    test_size: int


@dataclass(frozen=True, kw_only=True)
class ImageSource(ABC):
    """Base of the data sets that a config names by ``_target_``.

    A subclass is a dataclass with its own options that overrides :meth:`inventory`, :meth:`read` and,
    where something may be missing, :meth:`missing`. Constructing one reads nothing.

    Args:
        name: Name in tables and folder names.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
        validation: Share of the training images that is held out for validation.
        split_seed: Fixes the held-out images and those of ``train_size``. It is not the run's seed:
            a teacher of any seed must not have seen the images that its student is validated on.
        train_size: How many of the images that are not held out are trained on; ``None`` takes all.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    validation: Annotated[float, Range(minimum=0, below=1)] = 0.0
    split_seed: Annotated[int, NonNegative] = 0
    train_size: Annotated[int, Range(minimum=1)] | None = None

    def __post_init__(self) -> None:
        for key in ("mean", "std"):  # configs hold lists
            object.__setattr__(self, key, tuple(float(value) for value in getattr(self, key)))

    @abstractmethod
    def inventory(self) -> Inventory:
        """Counts the images without reading them; called only when nothing is missing."""

    @abstractmethod
    def read(self) -> tuple[tuple[str, ...], ImageSplit, ImageSplit]:
        """Reads class names, all training images and the test images."""

    def missing(self) -> list[str]:
        """Says in sentences what must be put right before the images can be counted."""
        return []

    def problems(self) -> list[str]:
        """Says in sentences what keeps this source from being loaded; reads no image."""
        problems = []
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            problems.append("mean and std need three values each, and those of std must be positive")
        missing = self.missing()
        return problems + (missing or self._share_problems())

    def facts(self) -> DatasetFacts:
        """Returns the sizes that a run will see; reads no image.

        Raises:
            UserError: There are problems.
        """
        self._require_no_problems()
        return self._facts()

    def known_facts(self) -> DatasetFacts | None:
        """Returns the sizes that are known even where files are missing; null for data of one's own."""
        return None

    def _facts(self) -> DatasetFacts:
        inventory = self.inventory()
        held = held_out_size(sum(inventory.train), len(inventory.train), self.validation)
        return DatasetFacts(
            classes=len(inventory.train),
            image_size=inventory.image_size,
            train_size=self.train_size or sum(inventory.train) - held,
            validation_size=held,
            test_size=inventory.test_size,
        )

    def load(self) -> ImageDataset:
        """Reads and decodes all images, then holds out and takes the shares asked for.

        Raises:
            UserError: There are problems, or images can't be read.
        """
        self._require_no_problems()
        classes, train, test = self.read()
        train, validation = hold_out(train, self.validation, self.split_seed)
        if self.train_size is not None:
            train = take(train, self.train_size, self.split_seed)
        return ImageDataset(self.name, classes, train, validation, test, self.mean, self.std)

    def _require_no_problems(self) -> None:
        problems = self.problems()
        if problems:
            raise UserError(f"data set {self.name}: " + "; ".join(problems))

    def _share_problems(self) -> list[str]:
        """Checks ``validation`` and ``train_size`` against the images that there are."""
        counts = self.inventory().train
        held = held_out_size(sum(counts), len(counts), self.validation)
        left = sum(counts) - held
        if self.validation and min(counts) < 2:
            return ["validation needs at least two training images of every class"]
        if left < len(counts):
            return [f"validation={self.validation} leaves {left} training images for {len(counts)} classes"]
        if self.train_size is not None and not len(counts) <= self.train_size <= left:
            training = f"the training images left after holding out {held}" if held else "all training images"
            return [
                f"train_size={self.train_size} is not between {len(counts)} (classes) and {left} ({training})"
            ]
        return []
