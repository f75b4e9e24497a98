"""tieredImageNet from the published arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from gda.data.few_shot.listing import FewShotListing
from gda.data.few_shot.npz_images import NpzImages
from gda.data.few_shot.pickled_labels import class_ids, from_zero
from gda.data.few_shot.safe_pickle import load_pickle
from gda.data.few_shot.source import FewShotSource
from gda.data.few_shot.undecoded import UndecodedSplit
from gda.data.image_files import file_hash
from gda.errors import UserError

MINI_CLASSES = 64
MINI_IMAGES = 600  # most of one class


@dataclass(frozen=True, kw_only=True)
class TieredImageNet(FewShotSource):
    """351 base, 97 validation and 160 novel classes of ImageNet, split by the categories above them.

    For each of ``train``, ``val`` and ``test`` there are ``{split}_images.npz`` (array ``images``, uint8
    ``(N, 84, 84, 3)``, blue, green, red) and ``{split}_labels.pkl`` (entry ``labels``). The arrays are
    read in pieces, the pickles followed step by step; nothing in them can run. Sources: M. Ren et al.,
    arXiv 1803.00676; the files of K. Lee et al., arXiv 1904.03758.

    Args:
        root: Folder of the files.
        mini: Take 64 of the base classes, drawn as the published code draws them (numpy's generator of
            2011, seed 0), and of each the first 600 images.
    """

    FILES: ClassVar[Mapping[str, str]] = {"base": "train", "validation": "val", "test": "test"}

    root: str
    mini: bool = False

    def missing(self) -> list[str]:
        """Names the files that are not there."""
        folder = Path(self.root).expanduser()
        if not folder.is_dir():
            return [
                f"there is no folder {folder}: set dataset.root to the folder of the tieredImageNet files"
            ]
        paths = (path for pair in self._paths().values() for path in pair)
        absent = [path.name for path in paths if not path.is_file()]
        return [f"{', '.join(absent)} missing in {folder}"] if absent else []

    def listing(self) -> FewShotListing:
        """Reads the labels and the arrays' shapes."""
        parts = {split: _split(*pair) for split, pair in self._paths().items()}
        if self.mini:
            parts["base"] = mini_subset(parts["base"])
        return FewShotListing(**parts)

    def fingerprint(self) -> str:
        """Returns a hash of the labels and of the checksums that the files keep of their arrays."""
        pairs = self._paths().values()
        return "-".join(f"{_archive(images).fingerprint()}-{file_hash(labels)}" for images, labels in pairs)

    def _paths(self) -> dict[str, tuple[Path, Path]]:
        folder = Path(self.root).expanduser()
        return {
            split: (folder / f"{part}_images.npz", folder / f"{part}_labels.pkl")
            for split, part in self.FILES.items()
        }


def mini_subset(split: UndecodedSplit) -> UndecodedSplit:
    """Takes 64 classes, numbered in the order drawn, and the first 600 images of each.

    Raises:
        UserError: There are fewer classes.
    """
    if len(split.classes) < MINI_CLASSES:
        raise UserError(f"mini=true takes {MINI_CLASSES} base classes, and there are {len(split.classes)}")
    drawn = np.random.RandomState(0).choice(len(split.classes), MINI_CLASSES, replace=False)
    chosen = split.only(drawn.tolist())
    kept = torch.zeros(len(chosen), dtype=torch.bool)
    for label in range(MINI_CLASSES):
        kept[(chosen.targets == label).nonzero().flatten()[:MINI_IMAGES]] = True
    return chosen.subset(kept)


def _archive(path: Path) -> NpzImages:
    return NpzImages(path, "images", reverse_channels=True)


def _split(images: Path, labels: Path) -> UndecodedSplit:
    archive, status = _archive(images), labels.stat()
    numbers = _labels(labels, status.st_size, status.st_mtime_ns)
    if archive.shape()[0] != len(numbers):
        raise UserError(f"{images} holds {archive.shape()[0]} images, and {labels} {len(numbers)} labels")
    return UndecodedSplit.of_all(*from_zero(numbers, {}), archive.fill)


@lru_cache(maxsize=8)  # the cells of a sweep ask for the same files
def _labels(path: Path, size: int, changed: int) -> Tensor:
    return class_ids(load_pickle(path), path)
