"""Weights from a file or an address into a model: all of them or none, and no code with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from gda.errors import UserError
from gda.models.weights.checkpoint_formats import Checkpoint, recognise
from gda.models.weights.download import fetch, is_url
from gda.models.weights.file_hash import file_hash, verified_hash
from gda.models.weights.mismatch import class_counts, mismatches, not_finite
from gda.models.weights.state_names import part_for
from gda.models.weights.suggestion import suggest
from gda.models.weights.weight_files import printable, read_weight_file, require_file

__all__ = [
    "LoadedCheckpoint",
    "Weights",
    "class_counts",
    "file_hash",
    "load_checkpoint",
    "misfit",
    "not_finite",
    "read_checkpoint",
    "weights_of",
]

Weights = Literal["raw", "ema"]
"""Which weights of a file: those that were trained, or their exponential moving average."""


@dataclass(frozen=True)
class LoadedCheckpoint:
    """Where a model's weights come from.

    Attributes:
        source: The path or address that was given.
        path: The file.
        format: Name of its layout (:data:`gda.models.weights.checkpoint_formats.FORMATS`).
        epoch: Epochs the weights were trained for, where the file says so.
        metrics: Figures stored with them, by the file's own names and in its own units.
        sha256: Hash of the file, 64 hexadecimal digits.
        ema: Whether the weights are a moving average.
    """

    source: str
    path: Path
    format: str
    epoch: int | None
    metrics: dict[str, float]
    sha256: str
    ema: bool


def load_checkpoint(
    model: nn.Module, path_or_url: str | Path, *, sha256: str | None = None, weights: Weights = "raw"
) -> LoadedCheckpoint:
    """Loads weights into a model, all of them or none.

    An encoder without a head gets the ``encoder.`` part of a few-shot classifier's weights.

    Args:
        model: The model; left as it was on any error.
        path_or_url: A file in one of the layouts of :mod:`gda.models.weights.checkpoint_formats`, or an
            address of one, which is fetched once (:mod:`gda.models.weights.download`).
        sha256: What the file's hash must be, as 64 hexadecimal digits; it is verified before anything
            is read.
        weights: ``ema`` takes the moving average that the file holds beside the weights.

    Returns:
        What was loaded.

    Raises:
        UserError: The file is missing, can't be fetched, has another hash, is damaged, would run code,
            or does not fit; the message names the parameters and shapes that differ, and the model
            that would fit.
    """
    source = str(path_or_url)
    path = fetch(source, sha256) if is_url(source) else Path(path_or_url)
    require_file(path)
    digest = verified_hash(path, sha256, source)
    checkpoint = read_checkpoint(path)
    state = weights_of(checkpoint, path, weights)
    problem = misfit(model, state, checkpoint.architecture)
    if problem is not None:
        raise UserError(f"The weights in {path} do not fit the model: {problem}.")
    broken = not_finite(model, state)
    if broken is not None:
        raise UserError(f"The weights in {path} are not finite; {broken}.")
    _load_all_or_none(model, part_for(model, state), path)
    return LoadedCheckpoint(
        source, path, checkpoint.format, checkpoint.epoch, checkpoint.metrics, digest, weights == "ema"
    )


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a file and recognises its layout; the numbers are not looked at yet.

    Raises:
        UserError: It is missing, damaged, would run code, or holds no weights.
    """
    path = Path(path)
    file = read_weight_file(path)
    checkpoint = recognise(file)
    if checkpoint is None:
        keys = ", ".join(printable(key) for key in list(file.content)[:8])
        raise UserError(f"The file {path} holds no weights (its keys: {keys or 'none'}).")
    return checkpoint


def weights_of(checkpoint: Checkpoint, path: str | Path, weights: Weights = "raw") -> dict[str, Tensor]:
    """Chooses between the weights of a file and their moving average.

    Args:
        checkpoint: What the file holds.
        path: The file, for the message.
        weights: Which are wanted.

    Raises:
        UserError: There is no such choice, or the file holds no moving average.
    """
    if weights not in ("raw", "ema"):
        raise UserError(f"there are no weights {weights!r} to choose; there are 'raw' and 'ema'")
    if weights == "raw":
        return checkpoint.state
    if not checkpoint.ema:
        raise UserError(f"The file {path} holds no moving average (EMA) of its weights; take weights=raw.")
    return checkpoint.ema


def misfit(model: nn.Module, state: Mapping[str, Tensor], architecture: str | None = None) -> str | None:
    """Says why weights can't be loaded into a model, and into which they can; ``None`` when they fit.

    Args:
        model: The model; may be on the meta device.
        state: A file's weights.
        architecture: What the file says of its architecture.
    """
    problems = mismatches(model, state)
    if not problems:
        return None
    classes = class_counts(model, state)
    if classes is not None:
        return f"they were trained for {classes[0]} classes, and the model has {classes[1]}"
    suggestion = suggest(state, architecture)
    return "; ".join(problems if suggestion is None else [*problems, suggestion])


def _load_all_or_none(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        model.load_state_dict(state)
    except Exception as error:  # a model's own loading code can fail in its own ways
        model.load_state_dict(before)
        raise UserError(f"The weights in {path} could not be loaded: {error}") from error
