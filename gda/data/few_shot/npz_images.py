"""Images in one array of an npz file, read in pieces: the file may be larger than memory."""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
from torch import Tensor

from gda.data.few_shot.undecoded import PIECE, store
from gda.errors import UserError


@dataclass(frozen=True)
class NpzImages:
    """The array ``key`` of the file ``path``, uint8 ``(N, s, s, 3)``.

    Attributes:
        path: The file.
        key: The array's name in it.
        reverse_channels: Whether its images are blue, green, red; they are read as red, green, blue.
    """

    path: Path
    key: str
    reverse_channels: bool = False

    def shape(self) -> tuple[int, ...]:
        """Returns the array's shape; reads no image.

        Raises:
            UserError: The file is damaged, lacks the array, or the array is none of images.
        """
        with self._open() as (_, shape):
            return shape

    def fingerprint(self) -> str:
        """Returns a hash of the checksum that the file keeps of the array, and of its size.

        Raises:
            UserError: The file is damaged or lacks the array.
        """
        with self._errors(), zipfile.ZipFile(self.path) as archive:
            entry = archive.getinfo(f"{self.key}.npy")
            return hashlib.sha256(f"{entry.CRC} {entry.file_size}".encode()).hexdigest()[:16]

    def fill(self, rows: Tensor, size: int, images: Tensor) -> None:
        """Reads the images at some positions.

        Args:
            rows: Positions, ascending.
            size: Height and width that they are resized to, in pixels.
            images: ``(len(rows), 3, size, size)``, uint8; overwritten.

        Raises:
            UserError: The file is damaged.
        """
        wanted, done = rows.numpy(), 0
        with self._open() as (member, shape):
            image = prod(shape[1:])
            for first in range(0, shape[0], PIECE):
                count = min(PIECE, shape[0] - first)
                data = member.read(count * image)
                if len(data) != count * image:
                    raise EOFError
                inside = wanted[(wanted >= first) & (wanted < first + count)] - first
                if len(inside):
                    pixels = np.frombuffer(data, np.uint8).reshape(count, *shape[1:])[inside]
                    pixels = pixels[..., ::-1].copy() if self.reverse_channels else pixels
                    store(pixels, size, images[done : done + len(inside)])
                done += len(inside)

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
        """Opens the array where its first image begins."""
        with self._errors(), zipfile.ZipFile(self.path) as archive, archive.open(f"{self.key}.npy") as member:
            version = np.lib.format.read_magic(member)
            read = _HEADERS.get(version, np.lib.format.read_array_header_2_0)
            shape, fortran, dtype = read(member)
            if dtype.hasobject:
                raise UserError(
                    f"{self.path} is not read: {self.key} holds Python objects, which could run code; fetch "
                    "the published file again"
                )
            if dtype != np.uint8 or len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or fortran:
                raise UserError(
                    f"{self.path}: {self.key} is {dtype} {shape}, not uint8 (N, size, size, 3) in C order"
                )
            yield member, shape

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except KeyError as error:
            raise UserError(f"{self.path} holds no array {self.key!r}") from error
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError) as error:
            raise UserError(f"{self.path} is not read: it is damaged, or no npz; fetch it again") from error
        except OSError as error:
            raise UserError(f"can't read {self.path}: {error.strerror or error}") from error


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0}
