"""What a few-shot data set holds, known before any image is decoded."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields

from gda.data.few_shot.undecoded import UndecodedSplit

SHOWN = 10  # names in one message


@dataclass(frozen=True)
class SplitFacts:
    """What is known of a split before any image is decoded.

    Attributes:
        classes: Number of classes.
        images: Number of images.
        smallest_class: Images of the smallest class, which bounds shots and queries.
        image_size: Height and width in pixels, before any transform.
        counts: Images of each class that has some, by its name.
    """

    classes: int
    images: int
    smallest_class: int
    image_size: int
    counts: Mapping[str, int] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class FewShotFacts:
    """What is known of a few-shot data set before any image is decoded; see :class:`FewShotDataset`."""

    base: SplitFacts
    base_validation: SplitFacts | None
    base_test: SplitFacts | None
    validation: SplitFacts | None
    test: SplitFacts

    @property
    def classes(self) -> int:
        """Number of base classes, which models have a head for."""
        return self.base.classes

    @property
    def image_size(self) -> int:
        """Height and width of the images to train on, before any transform."""
        return self.base.image_size

    @property
    def evaluation_image_size(self) -> int:
        """Height and width of all other images, before any transform."""
        return self.test.image_size

    @property
    def train_size(self) -> int:
        """Images to train on."""
        return self.base.images


@dataclass(frozen=True, eq=False)
class FewShotListing:
    """What a source holds, undecoded; splits that it has no images for are ``None``."""

    base: UndecodedSplit
    test: UndecodedSplit
    validation: UndecodedSplit | None = None
    base_validation: UndecodedSplit | None = None
    base_test: UndecodedSplit | None = None

    def facts(self, size_of: Callable[[str], int]) -> FewShotFacts:
        """Counts classes and images.

        Args:
            size_of: Gives the height and width that the images of a split will have, by its name.
        """

        def of(name: str, split: UndecodedSplit) -> SplitFacts:
            counts = dict(zip(split.classes, split.counts(), strict=True))
            some = {each: count for each, count in counts.items() if count}
            return SplitFacts(len(counts), len(split), min(counts.values()), size_of(name), some)

        def perhaps(name: str, split: UndecodedSplit | None) -> SplitFacts | None:
            return None if split is None else of(name, split)

        return FewShotFacts(
            base=of("base", self.base),
            base_validation=perhaps("base_validation", self.base_validation),
            base_test=perhaps("base_test", self.base_test),
            validation=perhaps("validation", self.validation),
            test=of("test", self.test),
        )

    def splits(self) -> Iterator[tuple[str, UndecodedSplit]]:
        """Yields the splits that hold images of their own, by name."""
        for each in fields(self):
            split = getattr(self, each.name)
            if split is not None and not (each.name == "validation" and split is self.base_validation):
                yield each.name, split


def some(names: list[str]) -> str:
    """Returns the first names of a list, and how many more there are."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
