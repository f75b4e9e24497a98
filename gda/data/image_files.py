"""Image files by class: listed, decoded once, and identified by what is in them."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from gda.data.few_shot.listing import some
from gda.data.few_shot.undecoded import UndecodedSplit
from gda.data.image_folder import EXTENSIONS
from gda.errors import UserError

Listing = Mapping[str, Sequence[Path]]
"""Image files by class name."""


def image_files(folder: Path) -> list[Path]:
    """Lists the image files of a folder and its subfolders, sorted; hidden ones are left out."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS
        ]
    return sorted(found)


def class_folders(folder: Path) -> list[Path]:
    """Lists the folders in a folder, sorted; hidden ones are left out."""
    return sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))


def split_of_files(listing: Listing, box: Callable[[int], int] | None = None) -> UndecodedSplit:
    """Makes a split of image files; classes in the order of the listing.

    Args:
        listing: Files by class name.
        box: Gives, for the size that images are kept with, the length that their shorter side is
            resized to before the middle is cut out. ``None`` resizes it to that size.
    """
    files = [file for found in listing.values() for file in found]
    counts = torch.tensor([len(found) for found in listing.values()], dtype=torch.int64)
    targets = torch.arange(len(counts)).repeat_interleave(counts)

    def fill(rows: Tensor, size: int, images: Tensor) -> None:
        chosen = [files[row] for row in rows.tolist()]
        _decode(chosen, size, size if box is None else box(size), images)

    return UndecodedSplit.of_all(tuple(listing), targets, fill)


def content_hash(listings: Mapping[str, Listing]) -> str:
    """Returns a hash of class names and file contents, whatever the files and folders are called.

    Args:
        listings: Listings by split name.
    """
    files = tuple(
        (f"{split}/{name}", file, *_version(file))
        for split, listing in listings.items()
        for name, found in listing.items()
        for file in found
    )
    return _content_hash(files)


def file_hash(path: Path) -> str:
    """Returns a hash of a file's content."""
    return _file_hash(path, *_version(path))


def _version(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4)  # the cells of a sweep ask for the same files
def _content_hash(files: tuple[tuple[str, Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, file, _, _ in files:
        digest.update(f"{name}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=32)
def _file_hash(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _decode(files: Sequence[Path], size: int, box: int, images: Tensor) -> None:
    def decode(position: int) -> str | None:
        try:
            images[position] = _read_image(files[position], size, box)
        except Exception as error:  # Pillow's plugins raise errors of many kinds for broken files
            return f"{files[position]} ({type(error).__name__})"
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes outside the lock
        broken = [fault for fault in pool.map(decode, range(len(files))) if fault]
    if broken:
        raise UserError(f"{len(broken)} images can't be read: {some(broken)}")


def _read_image(path: Path, size: int, box: int) -> Tensor:
    """Returns the middle of one image whose shorter side is resized to ``box``, ``(3, size, size)``."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as file:
        image = file.convert("RGB")
    width, height = image.size
    shorter = min(width, height)
    if shorter != box:
        width, height = box * width // shorter, box * height // shorter
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if image.size != (size, size):
        left, top = round((width - size) / 2), round((height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
