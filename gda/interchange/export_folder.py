"""The folder that a model is exported or imported into: one model, described by ``model.json``."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gda.errors import UserError
from gda.interchange.eager_model import BATCH_SIZES
from gda.interchange.formats import FORMATS, CheckedFile
from gda.interchange.model_input import ModelInput
from gda.models.exported import DESCRIPTION, FORMAT, read_description
from gda.tracking.atomic import write_bytes_atomic, write_json_atomic


def require_free(folder: Path, origin: str) -> None:
    """Keeps a command from replacing what another run or file has left in a folder.

    Args:
        folder: Where the model shall be written.
        origin: Identifies where its weights come from.

    Raises:
        UserError: Another model lies there, or the path is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder with --to.")
    if (folder / DESCRIPTION).is_file() and _origin(folder) != origin:
        raise UserError(f"{folder} holds another model. Name another folder with --to, or remove that one.")


def write_model(
    folder: Path,
    files: Sequence[CheckedFile],
    *,
    origin: str,
    architecture: Mapping[str, Any],
    class_names: Sequence[str] | None,
    input: ModelInput,
    source: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes the files of a model, and ``model.json`` last.

    Formats that an earlier command has left and this one has not made are removed: they might hold
    other weights.

    Args:
        folder: Where to; made where it is missing.
        files: At least one.
        origin: As in :func:`require_free`.
        architecture: How to build the model (:func:`gda.interchange.architecture.describe_architecture`).
        class_names: Names in the order of the logits, where they are known.
        input: The images it takes.
        source: Where the weights come from.
        more: Further entries of ``model.json``.

    Raises:
        OSError: A file can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        write_bytes_atomic(folder / file.format.file, file.data)
    written = {file.format.file for file in files}
    for each in FORMATS.values():
        if each.file not in written:
            (folder / each.file).unlink(missing_ok=True)
    image = {key: value for key, value in asdict(input).items() if key != "classes"}
    write_json_atomic(
        folder / DESCRIPTION,
        {
            "format": FORMAT,
            "origin": origin,
            "architecture": architecture,
            "class_names": None if class_names is None else list(class_names),
            "input": {"layout": "NCHW", "type": "float32", **image},
            "source": source,
            **(more or {}),
            "files": {file.format.file: _facts(file) for file in files},
        },
    )


def content_hash(data: bytes) -> str:
    """Returns the SHA-256 of some bytes as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _origin(folder: Path) -> str | None:
    """Returns where the model in a folder is from; null where its description can't be read."""
    try:
        return str(read_description(folder).get("origin"))
    except UserError:
        return None


def _facts(file: CheckedFile) -> dict[str, Any]:
    return {
        "bytes": len(file.data),
        "sha256": content_hash(file.data),
        "largest_difference": file.deviation.largest,
        "relative_difference": file.deviation.relative,
        "allowed_relative_difference": file.format.tolerance,
        "checked_batch_sizes": list(BATCH_SIZES),
    }
