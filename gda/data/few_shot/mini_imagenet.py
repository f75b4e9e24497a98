"""miniImageNet from the published pickles."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from gda.data.few_shot.listing import FewShotListing
from gda.data.few_shot.pickled_array import PickledArray, Refused
from gda.data.few_shot.pickled_labels import class_ids, entry, from_zero
from gda.data.few_shot.safe_pickle import load_pickle
from gda.data.few_shot.source import FewShotSource
from gda.data.few_shot.undecoded import UndecodedSplit, store
from gda.data.image_files import file_hash
from gda.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MiniImageNet(FewShotSource):
    """64 base, 16 validation and 20 novel classes of ImageNet, 600 images of 84x84 pixels each.

    Base classes have more images, for validation and test of the base classes themselves. Each pickle
    is a dictionary: ``data``, uint8 ``(N, 84, 84, 3)``, and ``labels``, a list. They are followed step
    by step and never run. Sources: O. Vinyals et al., arXiv 1606.04080; the split of S. Ravi and
    H. Larochelle; the files of S. Gidaris and N. Komodakis, arXiv 1804.09458.

    Args:
        root: Folder of the pickles.
    """

    FILES: ClassVar[Mapping[str, str]] = {
        "base": "train_phase_train",
        "base_validation": "train_phase_val",
        "base_test": "train_phase_test",
        "validation": "val",
        "test": "test",
    }

    root: str

    def missing(self) -> list[str]:
        """Names the files that are not there."""
        absent = [path.name for path in self._paths().values() if not path.is_file()]
        folder = Path(self.root).expanduser()
        if not folder.is_dir():
            return [
                f"there is no folder {folder}: set dataset.root to the folder of the miniImageNet pickles"
            ]
        return [f"{', '.join(absent)} missing in {folder}"] if absent else []

    def listing(self) -> FewShotListing:
        """Reads the labels and passes over the images."""
        files = {split: _labels(path, *_version(path)) for split, path in self._paths().items()}
        first = int(files["base"].labels.min())
        parts = {}
        for split, file in files.items():
            of_base = split.startswith("base")
            parts[split] = file.split(first if of_base else None)
            if of_base and not set(file.labels.tolist()) <= set(files["base"].labels.tolist()):
                raise UserError(f"{file.path} has other classes than {files['base'].path.name}")
            if of_base:  # every base split has the classes of base
                parts[split] = UndecodedSplit.of_all(
                    parts["base"].classes, parts[split].targets, parts[split].fill
                )
        return FewShotListing(**parts)

    def fingerprint(self) -> str:
        """Returns a hash of the contents of all files."""
        return "-".join(file_hash(path) for path in self._paths().values())

    def _paths(self) -> dict[str, Path]:
        folder = Path(self.root).expanduser()
        return {
            split: folder / f"miniImageNet_category_split_{part}.pickle" for split, part in self.FILES.items()
        }


@dataclass(frozen=True, eq=False)
class _File:
    """What a pickle holds beside its pixels."""

    path: Path
    labels: Tensor
    names: Mapping[int, str]

    def split(self, first: int | None) -> UndecodedSplit:
        classes, targets = from_zero(self.labels, self.names, first)
        return UndecodedSplit.of_all(classes, targets, self.fill)

    def fill(self, rows: Tensor, size: int, images: Tensor) -> None:
        try:
            pixels = _images(load_pickle(self.path), self.path).numpy()
        except Refused as error:
            raise UserError(f"{self.path} is not read: {error}") from error
        store(pixels if len(rows) == len(pixels) else pixels[rows.numpy()], size, images)


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=16)  # the cells of a sweep ask for the same files
def _labels(path: Path, size: int, changed: int) -> _File:
    content = load_pickle(path, labels_only=True)
    labels, shape = class_ids(content, path), _images(content, path).shape
    if shape[0] != len(labels):
        raise UserError(f"{path} holds {shape[0]} images and {len(labels)} labels")
    return _File(path, labels, _names(content))


def _images(content: Any, path: Path) -> PickledArray:
    data = entry(content, "data", path)
    if not isinstance(data, PickledArray):
        raise UserError(f"{path}: 'data' is no numpy array")
    square = len(data.shape) == 4 and data.shape[1] == data.shape[2] and data.shape[3] == 3
    if data.dtype != "<u1" or not square:
        raise UserError(f"{path}: 'data' is {data.dtype} {data.shape}, not uint8 (N, size, size, 3)")
    return data


def _names(content: Mapping[Any, Any]) -> dict[int, str]:
    """Returns the names of class ids, which some copies of the files hold."""
    numbers = content.get("catname2label", {})
    if not isinstance(numbers, Mapping):
        return {}
    return {number: name for name, number in numbers.items() if isinstance(name, str) and type(number) is int}
