"""The layouts in which projects publish weights, and what each says beside them.

A layout is one line in ``FORMATS``; the first whose keys are all in the file is the file's. What is
read from a file is the same for all: a state dictionary, perhaps a second one with its moving average,
epochs, figures, and the architecture's name.
"""

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gda.models.weights.state_names import STUDENT, unwrapped
from gda.models.weights.weight_files import WeightFile


@dataclass(frozen=True)
class Format:
    """A layout of a dictionary. Places are dotted paths through dictionaries and namespaces.

    Attributes:
        name: Who writes it.
        keys: Keys by which it is recognised.
        weights: Key of the state dictionary; ``None`` where the dictionary itself is one.
        sign: What some parameter's name contains; another thing to recognise it by.
        ema: Key of the moving average of the weights.
        epoch: Place of the number of epochs.
        first_epoch: What the first finished epoch is called in it, 0 or 1.
        metrics: Keys of figures, or of dictionaries of figures.
        architecture: Places where the architecture's name may be.
    """

    name: str
    keys: tuple[str, ...]
    weights: str | None
    sign: str = ""
    ema: str = "model_ema"
    epoch: str = "epoch"
    first_epoch: int = 1
    metrics: tuple[str, ...] = ("best_acc", "accuracy", "acc", "best_acc1", "best_value", "metric")
    architecture: tuple[str, ...] = ("arch", "args.model", "args.arch", "opt.model_s", "opt.model")

    def fits(self, content: Mapping[str, Any]) -> bool:
        """Says whether a file has this layout."""
        if any(key not in content for key in self.keys):
            return False
        state = content if self.weights is None else content[self.weights]
        return isinstance(state, Mapping) and any(
            isinstance(key, str) and self.sign in key and isinstance(value, Tensor)
            for key, value in state.items()
        )


FORMATS = (
    Format("gda run", ("format", "epoch", "metrics", "model"), "model", metrics=("metrics",)),
    Format(
        "few-shot-meta-baseline",
        ("model_sd", "model_args", "training"),
        "model_sd",
        epoch="training.epoch",
        architecture=("model_args.encoder", "model"),
    ),
    # version 2 of timm's saver stores the index of the last epoch, earlier ones the number of the next
    Format("timm", ("state_dict", "arch", "version"), "state_dict", ema="state_dict_ema", first_epoch=0),
    Format("RepDistiller", ("model", "opt"), "model", epoch="opt.epochs"),
    Format("mdistiller", ("model", "optimizer", "best_acc"), "model", sign=STUDENT),
    Format("RepDistiller", ("model", "epoch", "accuracy"), "model"),
    Format("RepDistiller", ("model", "epoch", "best_acc"), "model"),
    Format("torchvision references", ("model", "lr_scheduler", "epoch", "args"), "model", first_epoch=0),
    Format("state_dict", ("state_dict",), "state_dict", ema="state_dict_ema"),
    Format("mdistiller", ("model",), "model"),
    Format("model_sd", ("model_sd",), "model_sd"),
    Format("model_state_dict", ("model_state_dict",), "model_state_dict"),
    Format("model_state", ("model_state",), "model_state"),
    Format("pytorch-cifar", ("net",), "net"),
    Format("state dictionary", (), None, metrics=()),
)
"""The known layouts, the more particular ones first."""

SAFETENSORS = "safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds, whatever its layout.

    Attributes:
        format: Name of the layout.
        state: The weights by parameter name, wrappers' prefixes taken off.
        ema: Their moving average, where the file has one.
        epoch: Epochs they were trained for, where the file says so.
        metrics: Figures by the file's own names; percentages or fractions as they were stored.
        architecture: The architecture's name in the project that wrote the file.
    """

    format: str
    state: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    epoch: int | None
    metrics: dict[str, float]
    architecture: str | None


def recognise(file: WeightFile) -> Checkpoint | None:
    """Finds the weights in a file; ``None`` where there are none."""
    if file.metadata is not None:
        return _from_safetensors(file.content, file.metadata)
    content = file.content
    format = next((each for each in FORMATS if each.fits(content)), None)
    if format is None:
        return None
    state = content if format.weights is None else content[format.weights]
    average = content.get(format.ema) if format.weights is not None else None
    places = (_text(_at(content, place)) for place in format.architecture)
    epoch = _whole(_at(content, format.epoch))
    return Checkpoint(
        format=format.name,
        state=unwrapped(_tensors(state)),
        ema=unwrapped(_tensors(average)) if isinstance(average, Mapping) else None,
        epoch=None if epoch is None else epoch + 1 - format.first_epoch,
        metrics=_figures({key: content.get(key) for key in format.metrics}),
        architecture=next((text for text in places if text), None),
    )


def safetensors_metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """Returns what a safetensors file should have beside the weights to be read back as they were."""
    known = {
        "epoch": None if checkpoint.epoch is None else str(checkpoint.epoch),
        "metrics": json.dumps(checkpoint.metrics) if checkpoint.metrics else None,
        "architecture": checkpoint.architecture,
    }
    return {"format": "pt", **{key: value for key, value in known.items() if value is not None}}


def _from_safetensors(content: Mapping[str, Any], metadata: Mapping[str, str]) -> Checkpoint | None:
    state = _tensors(content)
    epoch = metadata.get("epoch", "")
    try:
        metrics = json.loads(metadata.get("metrics", "{}"))
    except (ValueError, RecursionError):  # another project's idea of metrics
        metrics = {}
    return (
        Checkpoint(
            format=SAFETENSORS,
            state=unwrapped(state),
            ema=None,
            epoch=int(epoch) if epoch.isascii() and epoch.isdigit() and len(epoch) < 10 else None,
            metrics=_figures(metrics) if isinstance(metrics, dict) else {},
            architecture=_text(metadata.get("architecture")),
        )
        if state
        else None
    )


def _tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {
        key: value.detach()
        for key, value in state.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }


def _at(content: Any, place: str) -> Any:
    for key in place.split("."):
        if isinstance(content, argparse.Namespace):
            content = vars(content)
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _figures(entries: Mapping[Any, Any]) -> dict[str, float]:
    """Keeps what is a number, one level deep."""
    figures: dict[str, float | None] = {}
    for key, value in entries.items():
        inner = value if isinstance(value, dict) else {key: value}
        figures |= {name: _number(each) for name, each in inner.items() if isinstance(name, str)}
    return {name: number for name, number in figures.items() if number is not None}


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 and math.isfinite(value) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number.is_integer() and 0 <= number < 10**9 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= 200 else None
