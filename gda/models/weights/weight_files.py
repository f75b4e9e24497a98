"""Reads files of weights as data: ``torch.save``'s two formats and safetensors.

A file is recognised by its first bytes, whatever it is called. Everything it claims is verified before
anything is allocated: checksums, sizes, the extent of every tensor (:mod:`gda.models.weights.pickle_check`).
Then ``torch.load(weights_only=True)`` reads it, or the safetensors library.
"""

import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch

from gda.errors import UserError
from gda.models.weights.inert import INERT
from gda.models.weights.pickle_check import check_pickle
from gda.models.weights.pickle_names import PLAIN_DTYPES, Refused, Storage

MAX_PICKLE = 32 * 2**20
"""Bound on what a file holds beside numbers, in bytes."""

MAX_TENSORS = 100_000
"""Bound on the tensors of a safetensors file."""

_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # torch.save's format before 1.6
_LEGACY_PROTOCOL = 1001


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Attributes:
        content: The dictionary that was saved, tensors on the CPU.
        metadata: The texts that a safetensors file has beside its tensors; ``None`` for other files.
    """

    content: dict[str, Any]
    metadata: dict[str, str] | None = field(default=None)


def read_weight_file(path: Path) -> WeightFile:
    """Reads a file without running code from it.

    Args:
        path: A ``.pt``, ``.pth``, ``.pth.tar``, ``.bin`` or ``.safetensors`` file.

    Raises:
        UserError: It is missing, damaged, would run code, or is no file of weights.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            return _read(file, path)
    except Refused as error:
        raise UserError(f"The checkpoint {path} can't be read safely: {error}.") from error
    except Exception as error:  # zipfile, torch and safetensors raise many kinds for damaged bytes
        reason = "it is damaged, or no file of weights that torch or safetensors have written"
        raise UserError(f"The checkpoint {path} can't be read safely: {reason}.") from error


def require_file(path: Path) -> None:
    """Checks that there is a file.

    Raises:
        UserError: There is none, or it is a folder.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it, such as {path / 'last.pt'}.")
    if not path.is_file():
        raise UserError(f"There is no checkpoint file {path}.")


def _read(file: BinaryIO, path: Path) -> WeightFile:
    start = file.read(512)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        _check_zip(file)
        return WeightFile(_load(file))
    if start.startswith(_LEGACY):
        return WeightFile(_load(_check_legacy(file)))
    if start[8:9] == b"{":
        return _load_safetensors(path)
    raise Refused(_what_else(start, file))


def _check_zip(file: BinaryIO) -> None:
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: record for record in archive.infolist()}
        folder = next(iter(records)).partition("/")[0]
        if f"{folder}/data.pkl" not in records:
            raise Refused("it is a zip archive; unpack it and name the file of weights in it")
        if f"{folder}/constants.pkl" in records:
            raise Refused("it is a TorchScript program; save the model's state_dict() instead")
        _require_plain_archive(archive, folder)
        damaged = archive.testzip()
        if damaged is not None:
            raise Refused(f"it is damaged (the record {printable(damaged)} fails its checksum)")
        if records[f"{folder}/data.pkl"].file_size > MAX_PICKLE:
            raise Refused("it holds far more than a model's weights and options")
        facts = check_pickle(BytesIO(archive.read(f"{folder}/data.pkl")))
    for key, storage in facts.storages.items():
        record = records.get(f"{folder}/data/{key}")
        if record is None or record.file_size != storage.nbytes:
            raise Refused("it is damaged (it lacks numbers of its tensors)")
    file.seek(0)


def _require_plain_archive(archive: zipfile.ZipFile, folder: str) -> None:
    """Refuses archives that are compressed, or that two readers could understand in two ways."""
    records = archive.infolist()
    names = {record.filename.casefold() for record in records}
    together = all(record.filename.startswith(f"{folder}/") for record in records)
    stored = all(
        record.compress_type == zipfile.ZIP_STORED and record.compress_size == record.file_size
        for record in records
    )
    apart = sum(record.file_size for record in records) <= archive.start_dir
    if len(names) != len(records) or not together or not stored or not apart or archive.comment:
        raise Refused("it is no archive as torch.save writes it")


def _check_legacy(file: BinaryIO) -> BytesIO:
    stream = BytesIO(file.read())
    size = len(stream.getbuffer())
    check_pickle(stream)  # the magic number, which is known to be there
    if check_pickle(stream).value != _LEGACY_PROTOCOL:
        raise Refused("it is damaged")
    check_pickle(stream)  # a description of the machine it was saved on
    facts = check_pickle(stream)
    keys = check_pickle(stream).value
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Refused("it is damaged")
    if len(keys) != len(facts.storages) or set(keys) != set(facts.storages):
        raise Refused("it is damaged")
    for key in keys:
        _skip_numbers(stream, facts.storages[key], size)
    stream.seek(0)
    return stream


def _skip_numbers(stream: BytesIO, storage: Storage, size: int) -> None:
    numel = int.from_bytes(stream.read(8), "little")
    if numel != storage.numel or stream.tell() + storage.nbytes > size:
        raise Refused("it is damaged (it lacks numbers of its tensors)")
    stream.seek(storage.nbytes, 1)


def _load(file: BinaryIO) -> dict[str, Any]:
    allowed: list[Any] = [(stand_in, name) for name, stand_in in INERT.items()]
    with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on old pickles and deprecated storages: nothing to act on
        content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise Refused(f"it holds a {type(content).__name__}, not weights")
    return {key: value for key, value in content.items() if isinstance(key, str)}


def _load_safetensors(path: Path) -> WeightFile:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as archive:
        names = archive.keys()
        if len(names) > MAX_TENSORS:
            raise Refused("it holds far more than a model's weights")
        content = {name: archive.get_tensor(name) for name in names}
        metadata = archive.metadata() or {}
    odd = next((key for key, tensor in content.items() if tensor.dtype not in PLAIN_DTYPES), None)
    if odd is not None:
        raise Refused(f"{printable(odd)} is of type {content[odd].dtype}, no plain number")
    return WeightFile(content, metadata)


def _what_else(start: bytes, file: BinaryIO) -> str:
    """Says what a file is that is none of weights, for those that are often mistaken for one."""
    if start.startswith(b"\x80"):
        check_pickle(BytesIO(file.read(MAX_PICKLE)))  # says what it would run
        return "it is a pickle that torch.save has not written"
    for beginning, what in _MISTAKEN.items():
        if start.lstrip().lower().startswith(beginning):
            return what
    return "it is damaged, or no file of weights that torch or safetensors have written"


_MISTAKEN: dict[bytes, str] = {
    b"<!doctype html": "it is a web page, not the file that the page offers",
    b"<html": "it is a web page, not the file that the page offers",
    b"version https://git-lfs": "it is a Git LFS pointer; 'git lfs pull' fetches the file itself",
    b"\x1f\x8b": "it is compressed; unpack it and name the file of weights in it",
    b"bzh": "it is compressed; unpack it and name the file of weights in it",
    b"\xfd7zxz": "it is compressed; unpack it and name the file of weights in it",
    b"\x89hdf": "it is an HDF5 file; save the weights with torch.save or safetensors",
}


def printable(name: str) -> str:
    """Returns a name from a file, fit to print: short, and without control characters."""
    text = ascii(name)[1:-1]
    return text if len(text) <= 60 else f"{text[:57]}..."
