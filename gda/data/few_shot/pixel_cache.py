"""Decoded images in a file that is memory-mapped, for data sets larger than memory."""

import os
import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gda.errors import UserError


def memory_mapped(path: Path, shape: tuple[int, ...], fill: Callable[[Tensor], None]) -> Tensor:
    """Returns uint8 numbers that lie in a file; makes the file when it is not there.

    It is written under another name and renamed when it is whole, so that a process that is stopped
    leaves nothing that could be taken for it; such a ``.partial`` file may be removed.

    Args:
        path: The file, in numpy's format.
        shape: Shape of the numbers.
        fill: Writes them into a tensor of that shape.

    Returns:
        A tensor of that shape. What is written into it stays in memory and never reaches the file.

    Raises:
        UserError: The file can't be written, there is no room for it, or it holds something else.
    """
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            _require_room(path, prod(shape))
            partial = path.with_name(f"{path.name}.{os.uname().nodename}-{os.getpid()}.partial")
            try:
                _write(partial, shape, fill)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        numbers = np.load(path, mmap_mode="c", allow_pickle=False)
    except OSError as error:
        raise UserError(f"can't keep decoded images in {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} holds no decoded images: remove it, and it is made again") from error
    if numbers.shape != shape or numbers.dtype != np.uint8:
        raise UserError(f"{path} holds other images than these: remove it, and it is made again")
    return torch.from_numpy(numbers)


def _write(path: Path, shape: tuple[int, ...], fill: Callable[[Tensor], None]) -> None:
    numbers = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    fill(torch.from_numpy(numbers))
    numbers.flush()


def _require_room(path: Path, needed: int) -> None:
    """Refuses beforehand: a memory map that outgrows its disk kills the process without a word."""
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise UserError(
            f"decoded images need {needed / 2**30:.2f} GiB in {path.parent}, where {free / 2**30:.2f} GiB "
            "are free: set dataset.cache to a folder with more room"
        )
