"""Reads the folders that ``python -m gda.models.export`` and ``python -m gda.models.import`` write.

``model.safetensors`` holds the weights. ``model.json`` says how to build the model, which images it
takes, where the weights come from, and the SHA-256 of every file beside it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from gda.errors import UserError
from gda.models.registry import create_model
from gda.models.weights.checkpoints import load_checkpoint
from gda.models.weights.file_hash import file_hash

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
FORMAT = 1
"""Version of the layout of ``model.json``."""


def load_exported(folder: str | Path) -> nn.Module:
    """Builds an exported or imported model and loads its weights.

    Args:
        folder: What the command has written, e.g. ``RUN_FOLDER/export``.

    Returns:
        The model, on the CPU, in evaluation mode. It takes images as ``model.json`` says under
        ``input``: ``(batch, 3, image_size, image_size)``, float32, normalised with ``mean`` and ``std``.

    Raises:
        UserError: The folder holds no export, its weights are not those that ``model.json`` describes,
            or the model is a class of one's own.
    """
    folder = Path(folder)
    description = read_description(folder)
    wanted = description["files"].get(WEIGHTS)
    if wanted is None:
        raise UserError(
            f"The export in {folder} holds no {WEIGHTS}: export again with safetensors among the formats."
        )
    architecture = description["architecture"]
    if architecture["name"] is None:
        raise UserError(
            f"The model in {folder} is no model of the zoo or of timm but {architecture['target']}, and "
            f"no file decides which code runs here. Build it, with {architecture['classes']} classes and the "
            f"options {architecture['options']}, then load_checkpoint(model, {str(folder / WEIGHTS)!r})."
        )
    weights = folder / WEIGHTS
    if not weights.is_file() or file_hash(weights) != wanted["sha256"]:
        raise UserError(
            f"{weights} is not the file that {DESCRIPTION} beside it describes (SHA-256 {wanted['sha256']}): "
            "it was changed or removed, or the command that wrote it was interrupted. Issue that again."
        )
    model = create_model(architecture["name"], architecture["classes"], **architecture["options"])
    load_checkpoint(model, weights)
    return model.eval()


def read_description(folder: str | Path) -> dict[str, Any]:
    """Returns ``model.json``, with at least ``architecture`` and ``files``.

    Raises:
        UserError: There is none, or it is damaged or of another version.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise UserError(f"{folder} holds no {DESCRIPTION}. {_advice(Path(folder))}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format"]
        if version == FORMAT:
            _require_keys(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): export or import the model again.") from error
    if version != FORMAT:
        raise UserError(f"{path} has format {version}; this version of gda reads format {FORMAT}.")
    return dict(content)


def _advice(folder: Path) -> str:
    if (folder / "export" / DESCRIPTION).is_file():
        return f"Did you mean {folder / 'export'}?"
    if (folder / "run.json").is_file():
        return f"It is a run folder: export its student with python -m gda.models.export {folder}"
    return "Name a folder that python -m gda.models.export or python -m gda.models.import has written."


def _require_keys(content: Mapping[str, Any]) -> None:
    architecture = content["architecture"]
    for key in ("name", "target", "classes"):
        architecture[key]
    for container in (architecture["options"], content["files"], *content["files"].values()):
        if not isinstance(container, dict):
            raise TypeError(f"{container!r} is not a mapping")
    for file in content["files"].values():
        file["sha256"]
