"""Omniglot: handwritten characters of fifty alphabets."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

import torch

from gda.data.few_shot.listing import FewShotListing
from gda.data.few_shot.source import FewShotSource, Pixels
from gda.data.image_files import class_folders, content_hash, image_files, split_of_files
from gda.errors import UserError
from gda.ranges import NonNegative
from gda.seeding import generator

Listing = dict[str, list[Path]]


@dataclass(frozen=True, kw_only=True)
class Omniglot(FewShotSource):
    """1,623 characters, each drawn by 20 people: 964 background and 659 evaluation characters.

    Grey images of 105x105 pixels, dark on white as torchvision reads them, repeated over three channels.
    Background characters are the base classes, evaluation characters the novel ones. Source: B. Lake et
    al., "Human-level concept learning through probabilistic program induction", Science 350, 2015.

    Args:
        root: Folder that holds ``omniglot-py`` as torchvision unpacks it, or ``background`` and
            ``evaluation`` with a folder for each ``alphabet.character``.
        image_size: Height and width in pixels that images are kept with.
        validation_alphabets: How many whole background alphabets are for validation, for the
            evaluation characters are of other alphabets, too. Drawn by ``split_seed``. 0 validates on
            the held-out images of base characters (``validation``).
    """

    LAYOUTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("omniglot-py/images_background", "omniglot-py/images_evaluation"),
        ("images_background", "images_evaluation"),
        ("background", "evaluation"),
    )

    root: str
    image_size: Pixels = 28
    validation_alphabets: Annotated[int, NonNegative] = 5

    def missing(self) -> list[str]:
        """Says when the folders are not there."""
        if self._folders is not None:
            return []
        root = Path(self.root).expanduser()
        return [
            f"there are no folders omniglot-py/images_background and omniglot-py/images_evaluation (nor "
            f"background and evaluation) in {root}: set dataset.root to the folder above them. "
            f"torchvision.datasets.Omniglot({str(root)!r}, background=True, download=True), and again with "
            "background=False, fetches them"
        ]

    def listing(self) -> FewShotListing:
        """Lists the image files, and chooses the alphabets for validation."""
        background, evaluation = self._listings
        base, test = split_of_files(background), split_of_files(evaluation)
        if not self.validation_alphabets:
            return FewShotListing(base, test)
        alphabets = sorted({_alphabet(name) for name in base.classes})
        if self.validation_alphabets >= len(alphabets):
            raise UserError(
                f"validation_alphabets={self.validation_alphabets} leaves no base classes: there are "
                f"{len(alphabets)} background alphabets"
            )
        order = torch.randperm(len(alphabets), generator=generator(self.split_seed, "validation alphabets"))
        held = {alphabets[number] for number in order[: self.validation_alphabets]}
        chosen = [number for number, name in enumerate(base.classes) if _alphabet(name) in held]
        others = [number for number, name in enumerate(base.classes) if _alphabet(name) not in held]
        return FewShotListing(base.only(others), test, base.only(chosen))

    def fingerprint(self) -> str:
        """Returns a hash of class names and image contents, the same for either layout."""
        background, evaluation = self._listings
        return content_hash({"background": background, "evaluation": evaluation})

    @property
    def _folders(self) -> tuple[Path, Path] | None:
        root = Path(self.root).expanduser()
        for background, evaluation in self.LAYOUTS:
            if (root / background).is_dir() and (root / evaluation).is_dir():
                return root / background, root / evaluation
        return None

    @cached_property
    def _listings(self) -> tuple[Listing, Listing]:
        assert self._folders is not None
        background, evaluation = map(_characters, self._folders)
        return background, evaluation


def _characters(folder: Path) -> Listing:
    """Lists the drawings of each character, by ``alphabet.character``."""
    found: Listing = {}
    for outer in class_folders(folder):
        inner = class_folders(outer)
        found |= {f"{outer.name}.{each.name}": image_files(each) for each in inner}
        if not inner:
            found[outer.name] = image_files(outer)
    empty = [name for name, files in found.items() if not files]
    if empty or not found:
        raise UserError(f"{folder} holds no drawings" + (f" of {', '.join(empty[:10])}" if found else ""))
    return dict(sorted(found.items()))


def _alphabet(name: str) -> str:
    alphabet, dot, _ = name.rpartition(".")
    return alphabet if dot else name
