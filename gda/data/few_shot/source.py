"""Few-shot data sets: base classes to train on, and other classes to validate and test on."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated

from gda.data.dataset import ImageDataset, ImageSplit
from gda.data.few_shot.listing import FewShotFacts, FewShotListing, some
from gda.errors import UserError
from gda.ranges import NonNegative, Positive, Range

HeldOut = Annotated[float, Range(minimum=0, below=1)]
Pixels = Annotated[int, Range(minimum=1)]


@dataclass(frozen=True, eq=False)
class FewShotDataset:
    """A few-shot data set, ready to train on. Targets are 0 to n - 1 within each split.

    Attributes:
        name: Its name in tables.
        base_classes: Names of the classes of ``base``, ``base_validation`` and ``base_test``.
        validation_classes: Names of the classes of ``validation``.
        test_classes: Names of the classes of ``test``.
        base: Images of the base classes to train on.
        base_validation: Held-out images of the base classes, for choosing; ``None`` where there are none.
        base_test: Held-out images of the base classes, for reporting; ``None`` where there are none.
        validation: Images that episodes for choosing are drawn from; ``None`` where there are none. Of
            classes of their own or, where a data set has no such classes, ``base_validation`` itself.
        test: Images of the novel classes, never trained on and never selected on.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
    """

    name: str
    base_classes: tuple[str, ...]
    validation_classes: tuple[str, ...]
    test_classes: tuple[str, ...]
    base: ImageSplit
    base_validation: ImageSplit | None
    base_test: ImageSplit | None
    validation: ImageSplit | None
    test: ImageSplit
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that models have a head for: the base classes."""
        return self.base_classes

    def base_classification(self) -> ImageDataset:
        """Returns the base classes alone, as classification knows data sets."""
        return ImageDataset(
            self.name,
            self.base_classes,
            self.base,
            self.base_validation,
            self.base_test,
            self.mean,
            self.std,
        )


@dataclass(frozen=True, kw_only=True)
class FewShotSource(ABC):
    """Base of the few-shot data sets that a config names by ``_target_``.

    A subclass is a dataclass with its own options that overrides :meth:`listing` and, where something
    may be missing, :meth:`missing`. Constructing one reads nothing.

    Args:
        name: Name in tables and folder names.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
        image_size: Height and width in pixels that images are kept with, resized once as Pillow
            resizes (bilinear, antialiased).
        train_image_size: The same for ``base``. Published code cuts its random crops from images
            that are larger than what the model sees (84 and 80); ``None`` keeps ``image_size``.
        validation: Share of the base images that is held out as ``base_validation``.
        base_test: Share of the base images that is held out as ``base_test``.
        split_seed: Fixes the held-out images. It is not the run's seed: a teacher of any seed must
            not have seen the images that its student is validated on.
        max_memory_gib: Most memory that the decoded images may take, in GiB.
        cache: Folder for the decoded images when they take more than that; they are memory-mapped.
        force: Accept novel classes that are base classes too. Such figures are not few-shot figures.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: Pixels = 80
    train_image_size: Pixels | None = None
    validation: HeldOut = 0.0
    base_test: HeldOut = 0.0
    split_seed: Annotated[int, NonNegative] = 0
    max_memory_gib: Annotated[float, Positive] = 8.0
    cache: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        for key in ("mean", "std"):  # configs hold lists
            object.__setattr__(self, key, tuple(float(value) for value in getattr(self, key)))

    @abstractmethod
    def listing(self) -> FewShotListing:
        """Reads labels and class names, no images; called only when nothing is missing.

        Raises:
            UserError: Files are damaged, or are not what they should be.
        """

    def missing(self) -> list[str]:
        """Says in sentences what must be put right before anything can be read."""
        return []

    def problems(self) -> list[str]:
        """Says in sentences what keeps this source from being loaded; decodes no image."""
        problems = []
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            problems.append("mean and std need three values each, and those of std must be positive")
        missing = self.missing()
        if missing:
            return problems + missing
        try:
            return [*problems, *self._empty(), *self._overlaps(), *self._memory_problems()]
        except UserError as error:
            return [*problems, str(error)]

    def facts(self) -> FewShotFacts:
        """Returns the sizes that a run will see; decodes no image.

        Raises:
            UserError: There are problems.
        """
        self._require_no_problems()
        return self._divided.facts(self._size)

    def known_facts(self) -> FewShotFacts | None:
        """Returns the sizes that are known even where files are missing; null for data of one's own."""
        return None

    def base_class_names(self) -> tuple[str, ...]:
        """Returns the names of the base classes; decodes no image.

        Raises:
            UserError: There are problems.
        """
        self._require_no_problems()
        return self._divided.base.classes

    def load(self) -> FewShotDataset:
        """Decodes all images, each once and into the split where it stays.

        Raises:
            UserError: There are problems, or images can't be read.
        """
        self._require_no_problems()
        listing = self._divided
        cached = self._needed_gib() > self.max_memory_gib
        try:
            loaded = {
                name: split.decode(self._size(name), self._cache_file(name) if cached else None)
                for name, split in listing.splits()
            }
        except UserError as error:
            raise UserError(f"data set {self.name}: {error}") from error
        validation = listing.validation
        if validation is not None and validation is listing.base_validation:
            loaded["validation"] = loaded["base_validation"]
        return FewShotDataset(
            name=self.name,
            base_classes=listing.base.classes,
            validation_classes=() if validation is None else validation.classes,
            test_classes=listing.test.classes,
            base=loaded["base"],
            base_validation=loaded.get("base_validation"),
            base_test=loaded.get("base_test"),
            validation=loaded.get("validation"),
            test=loaded["test"],
            mean=self.mean,
            std=self.std,
        )

    @cached_property
    def _divided(self) -> FewShotListing:
        """The listing with the shares held out.

        Raises:
            UserError: It can't be read, or the shares can't be held out.
        """
        listing = self.listing()
        held = {"validation": listing.base_validation, "base_test": listing.base_test}
        for option, found in held.items():
            if found is not None and getattr(self, option):
                raise UserError(f"{option}={getattr(self, option)}: its files hold such images; set it to 0")
        base, test = listing.base.hold_out(
            self.base_test, 2 if self.validation else 1, self.split_seed, "base test"
        )
        share = self.validation * len(listing.base) / max(len(base), 1)  # a share of all base images
        base, validation = base.hold_out(share, 1, self.split_seed, "validation split")
        validation = validation or listing.base_validation
        return FewShotListing(
            base, listing.test, listing.validation or validation, validation, test or listing.base_test
        )

    def _size(self, split: str) -> int:
        return (self.train_image_size or self.image_size) if split == "base" else self.image_size

    def _needed_gib(self) -> float:
        return sum(split.nbytes(self._size(name)) for name, split in self._divided.splits()) / 2**30

    def _require_no_problems(self) -> None:
        problems = self.problems()
        if problems:
            raise UserError(f"data set {self.name}: " + "; ".join(problems))

    def _empty(self) -> Iterator[str]:
        for name, split in self._divided.splits():
            if not len(split):
                yield f"there are no images in {name}"

    def _overlaps(self) -> Iterator[str]:
        """Names classes of one split that are in another, too."""
        parts = {name: set(split.classes_with_images()) for name, split in self._divided.splits()}
        for one, other in (("base", "validation"), ("base", "test"), ("validation", "test")):
            both = sorted(parts.get(one, set()) & parts.get(other, set()))
            if both and not self.force:
                yield (
                    f"classes that are in {one} and in {other}: {some(both)}. Correct the files, or set "
                    "dataset.force=true to take them as they are"
                )

    def _memory_problems(self) -> Iterator[str]:
        needed = self._needed_gib()
        if needed > self.max_memory_gib and self.cache is None:
            yield (
                f"the decoded images need {needed:.2f} GiB of memory, more than dataset.max_memory_gib="
                f"{self.max_memory_gib:g}: raise it, lower dataset.image_size, or set dataset.cache to a "
                "folder where they are kept in files and memory-mapped"
            )

    def _cache_file(self, split: str) -> Path:
        """Returns a file name that says all that decides the images in it."""
        assert self.cache is not None
        aside = {"name", "mean", "std", "root", "max_memory_gib", "cache", "force"}
        options = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in aside}
        content = getattr(self, "fingerprint", lambda: "")()
        text = json.dumps([type(self).__qualname__, options, content, split], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return Path(self.cache).expanduser() / f"{self.name}-{split}-{key}.npy"
