"""Weights from files: a run's own checkpoints and plain state dictionaries, read without running code."""

import argparse
import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gda.errors import UserError

_STATE_KEYS = ("model", "state_dict", "model_sd")
_PREFIXES = ("module.", "_orig_mod.", "student.")


@dataclass(frozen=True)
class LoadedCheckpoint:
    """What a file held.

    Attributes:
        path: The file.
        epoch: Epochs it was trained for, where the file says so.
        metrics: Figures stored with it, where the file has some.
    """

    path: Path
    epoch: int | None
    metrics: dict[str, Any]


def load_checkpoint(model: nn.Module, path: str | Path) -> LoadedCheckpoint:
    """Loads weights into a model, all of them or none.

    Args:
        model: The model; left as it was when the file does not fit.
        path: A ``.pt``/``.pth`` file (a run's ``last.pt`` or ``best.pt``, ``{"model": ...}``,
            ``{"state_dict": ...}``, ``{"model_sd": ...}`` or a bare state dictionary) or a
            ``.safetensors`` file.

    Raises:
        UserError: The file is missing, damaged, would run code, or does not fit; the message names
            the parameters and shapes that differ.
    """
    path = Path(path)
    content = _read(path)
    state = _state_dict(content, path)
    problems = mismatches(model, state)
    if problems:
        raise UserError(f"The weights in {path} do not fit the model: {'; '.join(problems)}.")
    model.load_state_dict(state)
    epoch, metrics = content.get("epoch"), content.get("metrics")
    return LoadedCheckpoint(
        path, epoch if isinstance(epoch, int) else None, dict(metrics) if isinstance(metrics, Mapping) else {}
    )


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Returns the state dictionary that a file holds, prefixes stripped.

    Raises:
        UserError: As :func:`load_checkpoint`, but for the fit.
    """
    return _state_dict(_read(Path(path)), Path(path))


def mismatches(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Says in words where a state dictionary and a model differ; empty when it fits."""
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in wanted]
    shapes = [
        f"{key} is {tuple(state[key].shape)} in the file and {tuple(value.shape)} in the model"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    problems = []
    if shapes:
        problems.append(_some(shapes, "shapes differ"))
    if missing:
        problems.append(_some(missing, "the file lacks"))
    if extra:
        problems.append(_some(extra, "the model has no"))
    return problems


def file_hash(path: str | Path) -> str:
    """Returns the SHA-256 of a file as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it, such as {path / 'last.pt'}.")
    if not path.is_file():
        raise UserError(f"There is no checkpoint file {path}.")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm's files hold one: inert data
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for damaged or hostile files
        raise UserError(f"The checkpoint {path} can't be read safely: {_reason(error)}.") from error
    if not isinstance(content, Mapping):
        raise UserError(f"The file {path} holds a {type(content).__name__}, not weights.")
    return dict(content)


def _reason(error: Exception) -> str:
    """Says why a file is refused; torch's own words would advise to run the code in it."""
    found = re.search(r"GLOBAL ((?:\w+\.)+\w+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and found:
        return f"it holds {found[1]}, which could run code; save the model's state_dict() instead"
    return "it is damaged, or no file of weights that torch or safetensors have written"


def _state_dict(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    state: Mapping[str, Any] = content
    for key in _STATE_KEYS:
        if isinstance(content.get(key), Mapping):
            state = content[key]
            break
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(
            f"The file {path} holds no weights (its keys: {', '.join(map(str, list(content)[:8]))})."
        )
    broken = [key for key, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if broken:
        named = _some(broken, "NaN or infinite values in")
        raise UserError(f"The weights in {path} are not finite; {named}.")
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _some(items: list[str], what: str, most: int = 4) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"{what}: {', '.join(items[:most])}{more}"
