"""CIFAR-10 and CIFAR-100 from a local folder, fetched only when asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from gda.data.dataset import ImageSplit
from gda.data.source import DatasetFacts, ImageSource, Inventory
from gda.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CIFAR10(ImageSource):
    """50,000 training and 10,000 test images of 32x32 pixels, 10 classes.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The files
    are read, and held against their published checksums, by torchvision.

    Args:
        root: Folder that holds (or will hold) the folder of the original Python archive.
        download: Fetch the archive into ``root`` when the files are not there.
        statistics: Mean and std as different code bases round them. Read by the config, whose
            ``mean`` and ``std`` may point into it, and not here.
    """

    SOURCE: ClassVar[str] = "CIFAR10"
    FOLDER: ClassVar[str] = "cifar-10-batches-py"
    FILES: ClassVar[tuple[str, ...]] = (
        *(f"data_batch_{k}" for k in range(1, 6)),
        "test_batch",
        "batches.meta",
    )
    CLASSES: ClassVar[int] = 10

    root: str
    download: bool = False
    statistics: Mapping[str, Any] | None = None

    @property
    def folder(self) -> Path:
        """The folder of the original archive."""
        return Path(self.root).expanduser() / self.FOLDER

    def inventory(self) -> Inventory:
        """Returns the known counts."""
        return Inventory(32, (50_000 // self.CLASSES,) * self.CLASSES, 10_000)

    def known_facts(self) -> DatasetFacts | None:
        """Returns the published sizes, with or without the files; null where the options are at fault."""
        return None if self._share_problems() else self._facts()

    def missing(self) -> list[str]:
        """Names the files that are not there, unless they may be fetched."""
        absent = [name for name in self.FILES if not (self.folder / name).is_file()]
        if self.download or not absent:
            return []
        what = "there is no folder" if not self.folder.is_dir() else f"{', '.join(absent)} missing in"
        return [f"{what} {self.folder}: set dataset.root to the folder above it, or dataset.download=true"]

    def read(self) -> tuple[tuple[str, ...], ImageSplit, ImageSplit]:
        """Reads all images; fetches the archive first where that is allowed and needed."""
        import torchvision  # slow to import

        load = getattr(torchvision.datasets, self.SOURCE)
        root = Path(self.root).expanduser()
        try:
            train = load(root, train=True, download=self.download)
            test = load(root, train=False)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"data set {self.name}: can't read {self.folder} ({error}). If its files are damaged, remove "
                "the folder; dataset.download=true fetches them"
            ) from error
        return tuple(train.classes), _split(train), _split(test)


@dataclass(frozen=True, kw_only=True)
class CIFAR100(CIFAR10):
    """50,000 training and 10,000 test images of 32x32 pixels, 100 classes; as :class:`CIFAR10`."""

    SOURCE: ClassVar[str] = "CIFAR100"
    FOLDER: ClassVar[str] = "cifar-100-python"
    FILES: ClassVar[tuple[str, ...]] = ("train", "test", "meta")
    CLASSES: ClassVar[int] = 100


def _split(source: Any) -> ImageSplit:
    """Takes the arrays out of a torchvision data set, which keeps them as ``(N, 32, 32, 3)``."""
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    return ImageSplit(images, torch.tensor(source.targets, dtype=torch.int64))
