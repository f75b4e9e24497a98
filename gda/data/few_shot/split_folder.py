"""One's own few-shot images: a folder for each class, and a file that says which class is for what."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from gda.data.few_shot.listing import FewShotListing, some
from gda.data.few_shot.source import FewShotSource
from gda.data.image_files import content_hash, image_files, split_of_files
from gda.errors import UserError
from gda.ranges import Range
from gda.suggestions import did_you_mean

Listing = dict[str, list[Path]]


@dataclass(frozen=True, kw_only=True)
class SplitFolder(FewShotSource):
    """Images in ``ROOT/[train/]<class>/``, and ``ROOT/split.json`` with the classes of each split.

    The split file is a JSON object with lists of class folders: ``base``, ``novel`` and, where there
    are validation classes, ``val``. With a folder ``evaluation``, novel and validation images come from
    it, and so do held-out images of the base classes; this is how ImageNet-800 is published (Y. Chen
    et al., arXiv 2003.04390). Images are decoded once: their shorter side is resized (bilinear,
    antialiased) and the middle is cut out.

    Args:
        root: The folder.
        split_file: The split file, relative to ``root``.
        images: Folder of the class folders, relative to ``root``; ``None`` takes ``train`` or
            ``images`` where there is one, or ``root`` itself.
        evaluation: Folder of other images of the same classes, relative to ``root``; ``None`` takes
            all images from ``images``.
        box_size: Length that the shorter side is resized to before the middle is cut out; ``None``
            takes ``image_size``. Images of ``train_image_size`` are cut at that length.
    """

    SPLITS: ClassVar[Mapping[str, str]] = {
        "base": "base",
        "train": "base",
        "val": "validation",
        "validation": "validation",
        "novel": "test",
        "test": "test",
    }
    """Names in split files, and ours."""

    root: str
    split_file: str = "split.json"
    images: str | None = None
    evaluation: str | None = None
    box_size: Annotated[int, Range(minimum=1)] | None = None

    def missing(self) -> list[str]:
        """Names missing folders and a missing split file, and a box that is too small."""
        if not self._root.is_dir():
            return [f"there is no folder {self._root}: set dataset.root to a folder with {self.split_file}"]
        problems = [
            f"there is no folder {self._root / name}"
            for name in (self.images, self.evaluation)
            if name is not None and not (self._root / name).is_dir()
        ]
        if not (self._root / self.split_file).is_file():
            problems.append(
                f"there is no split file {self._root / self.split_file}: it holds "
                '{"base": [...], "val": [...], "novel": [...]}, lists of class folders'
            )
        if self.box_size is not None and self.box_size < self.image_size:
            problems.append(f"box_size={self.box_size} is smaller than image_size={self.image_size}")
        return problems

    def listing(self) -> FewShotListing:
        """Lists the image files of the classes that the split file names."""
        return FewShotListing(
            **{split: split_of_files(found, self._box) for split, found in self._listings.items()}
        )

    def fingerprint(self) -> str:
        """Returns a hash of the class names of each split and of the contents of their images."""
        return content_hash(self._listings)

    @property
    def _root(self) -> Path:
        return Path(self.root).expanduser()

    def _box(self, size: int) -> int:
        return (self.box_size or size) if size == self.image_size else size

    @cached_property
    def _listings(self) -> dict[str, Listing]:
        """Image files by split and class.

        Raises:
            UserError: The split file is wrong, or classes have no folder or no images.
        """
        names = self._names()
        train = self._image_folder()
        evaluation = train if self.evaluation is None else self._root / self.evaluation
        listings = {
            split: _list(evaluation if split != "base" else train, classes)
            for split, classes in names.items()
        }
        if evaluation != train:
            listings["base_validation"] = _list(evaluation, names["base"])
        return listings

    def _image_folder(self) -> Path:
        if self.images is not None:
            return self._root / self.images
        found = [self._root / name for name in ("train", "images") if (self._root / name).is_dir()]
        return found[0] if found else self._root

    def _names(self) -> dict[str, list[str]]:
        """Reads the split file."""
        path = self._root / self.split_file
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is not read: it is no JSON ({error})") from error
        if not isinstance(content, dict):
            raise UserError(f"{path} holds no JSON object with the lists base, novel and, if any, val")
        names = {}
        for key, classes in content.items():
            split = self.SPLITS.get(key)
            if split is None:
                raise UserError(f"{path}: no split is called {key!r}; {did_you_mean(key, self.SPLITS)}")
            if split in names:
                raise UserError(f"{path} names the classes of {split} twice")
            names[split] = _class_names(classes, key, path)
        lacking = [name for name, split in (("base", "base"), ("novel", "test")) if split not in names]
        if lacking:
            raise UserError(f"{path} has no list {' and no list '.join(lacking)}")
        return names


def _class_names(classes: Any, key: str, path: Path) -> list[str]:
    """Returns a list of the split file, sorted as the published code sorts it."""
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{path}: {key!r} is no list of class folders")
    twice = (
        sorted({name for name in classes if classes.count(name) > 1})
        if len(set(classes)) < len(classes)
        else []
    )
    if twice:
        raise UserError(f"{path}: classes that {key!r} names twice: {some(twice)}")
    return sorted(classes)


def _list(folder: Path, classes: list[str]) -> Listing:
    absent = [name for name in classes if not (folder / name).is_dir()]
    if absent:
        raise UserError(f"classes of the split file that have no folder in {folder}: {some(absent)}")
    listing = {name: image_files(folder / name) for name in classes}
    empty = [name for name, files in listing.items() if not files]
    if empty:
        raise UserError(f"no images in these class folders of {folder}: {some(empty)}")
    return listing
