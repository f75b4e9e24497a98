"""One's own images: a folder for each split, in it a folder for each class."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from gda.data.dataset import ImageSplit
from gda.data.source import ImageSource, Inventory
from gda.errors import UserError
from gda.ranges import Positive, Range

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
SHOWN = 10  # names listed in one message

Listing = dict[str, list[Path]]
"""Image files by class name, both sorted."""


@dataclass(frozen=True, kw_only=True)
class ImageFolder(ImageSource):
    """Images in ``root/train/<class>/`` and ``root/test/<class>/`` (or ``root/val/<class>/``).

    Images are decoded once. One whose size is not ``image_size`` squared is resized (shorter side,
    bilinear, antialiased) and centre-cropped; the others stay as they are. When there is a ``test``
    folder, a ``val`` folder is not read: the validation share is held out of the training images.
    Hidden files and folders and files of other types than images are not read.

    Args:
        root: The folder that holds the split folders.
        image_size: Height and width in pixels that images are kept with.
        max_memory_gib: Most memory that the decoded images may take, in GiB.
    """

    root: str
    image_size: Annotated[int, Range(minimum=1)] = 32
    max_memory_gib: Annotated[float, Positive] = 8.0

    def inventory(self) -> Inventory:
        """Counts the image files."""
        train, test = self._train, self._test
        return Inventory(self.image_size, tuple(map(len, train.values())), sum(map(len, test.values())))

    def missing(self) -> list[str]:
        """Names missing folders, empty classes, classes of one split only, and too many images."""
        root, test = self._root, self._test_folder
        if not root.is_dir():
            return [
                f"there is no folder {root}: set dataset.root to a folder with train/ and test/ (or val/)"
            ]
        problems = []
        if not (root / "train").is_dir():
            problems.append(f"{root} has no folder train")
        if test is None:
            problems.append(f"{root} has no folder test (or val)")
        if problems or test is None:
            return problems
        for folder, listing in ((root / "train", self._train), (test, self._test)):
            if not listing:
                problems.append(f"{folder} has no class folders")
            empty = [name for name, files in listing.items() if not files]
            if empty:
                problems.append(f"no images in these class folders of {folder}: {_some(empty)}")
        for one, other, where in ((self._train, self._test, "train"), (self._test, self._train, test.name)):
            alone = [name for name in one if name not in other]
            if alone:
                problems.append(f"classes that only {where} has: {_some(alone)}")
        return problems or self._memory_problems()

    def read(self) -> tuple[tuple[str, ...], ImageSplit, ImageSplit]:
        """Decodes all images.

        Raises:
            UserError: Some can't be read; the message names them.
        """
        broken: list[str] = []
        train, test = (_decode(listing, self.image_size, broken) for listing in (self._train, self._test))
        if broken:
            raise UserError(f"data set {self.name}: {len(broken)} images can't be read: {_some(broken)}")
        return tuple(self._train), train, test

    def fingerprint(self) -> str:
        """Returns a hash of the names and contents of all image files.

        Part of a run's identity, for the name of a data set of one's own does not say what is in it.
        """
        files = [*self._files(self._train), *self._files(self._test)]
        return _content_hash(self._root, tuple((file, *_version(file)) for file in files))

    def _files(self, listing: Listing) -> Iterator[Path]:
        return (file for files in listing.values() for file in files)

    @property
    def _root(self) -> Path:
        return Path(self.root).expanduser()

    @property
    def _test_folder(self) -> Path | None:
        found = [self._root / name for name in ("test", "val") if (self._root / name).is_dir()]
        return found[0] if found else None

    @cached_property
    def _train(self) -> Listing:
        return _list_images(self._root / "train")

    @cached_property
    def _test(self) -> Listing:
        folder = self._test_folder
        return _list_images(folder) if folder else {}

    def _memory_problems(self) -> list[str]:
        train, test = (sum(map(len, listing.values())) for listing in (self._train, self._test))
        divided = bool(self.validation) or self.train_size is not None
        images = train * (2 if divided else 1) + test  # dividing the training images copies them
        needed = images * 3 * self.image_size**2 / 2**30
        if needed <= self.max_memory_gib:
            return []
        return [
            f"{train + test} images of {self.image_size}x{self.image_size} need {needed:.2f} GiB of memory, "
            f"more than dataset.max_memory_gib={self.max_memory_gib:g}: raise it or lower dataset.image_size"
        ]


def _version(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4)  # the cells of a sweep ask for the same folder
def _content_hash(root: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, _, _ in files:
        digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _list_images(folder: Path) -> Listing:
    """Lists the image files of each class folder, subfolders included, in a fixed order."""
    classes = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    return {each.name: _image_files(each) for each in classes}


def _image_files(folder: Path) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS
        ]
    return sorted(found)


def _decode(listing: Listing, size: int, broken: list[str]) -> ImageSplit:
    """Decodes a listing; adds files that can't be read to ``broken``."""
    files = [(path, label) for label, paths in enumerate(listing.values()) for path in paths]
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)

    def decode(position: int) -> str | None:
        path = files[position][0]
        try:
            images[position] = _read_image(path, size)
        except Exception as error:  # Pillow's plugins raise errors of many kinds for broken files
            return f"{path} ({type(error).__name__})"
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes outside the lock
        broken += [fault for fault in pool.map(decode, range(len(files))) if fault]
    return ImageSplit(images, torch.tensor([label for _, label in files], dtype=torch.int64))


def _read_image(path: Path, size: int) -> Tensor:
    """Returns one image ``(3, size, size)``, uint8."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as file:
        image = file.convert("RGB")
    if image.size != (size, size):
        width, height = image.size
        shorter = min(width, height)
        width, height = size * width // shorter, size * height // shorter
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - size) / 2), round((height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _some(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
