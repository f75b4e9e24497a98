"""The model card of imported weights, ``README.md`` beside them."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gda.interchange.accuracy import MeasuredAccuracy
from gda.models.exported import DESCRIPTION, WEIGHTS
from gda.models.registry import TIMM

CARD = "README.md"


def model_card(
    folder: Path,
    architecture: Mapping[str, Any],
    image: Mapping[str, Any],
    source: Mapping[str, Any],
    accuracy: MeasuredAccuracy,
    sha256: str,
    settings: Sequence[str],
) -> str:
    """Writes down where weights are from and what they are worth.

    Args:
        folder: Where the card will lie; named in its examples.
        architecture: As in ``model.json``.
        image: Size, mean and standard deviation of the images.
        source: As in ``model.json``.
        accuracy: What was measured.
        sha256: Hash of ``model.safetensors``.
        settings: Overrides that choose the data set and the recipe.
    """
    rows = {
        "source": f"`{source['source']}`",
        "format of the source": source["format"],
        "SHA-256 of the source": f"`{source['sha256']}`",
        f"SHA-256 of `{WEIGHTS}`": f"`{sha256}`",
        "weights": "moving average" if source["weights"] == "ema" else "as trained",
        "architecture": f"`{architecture['name']}`{_options(architecture['options'])}",
        "classes": architecture["classes"],
        "parameters": f"{architecture['parameters']:,}",
        "images": "{0}x{0} pixels in [0, 1], normalised with mean {1} and standard deviation {2}".format(
            image["image_size"], _list(image["mean"]), _list(image["std"])
        ),
        "epoch in the source": source["epoch"] if source["epoch"] is not None else "not stated",
        "figures in the source": _figures(source["metrics"]),
        "test accuracy": accuracy,
    }
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    name = str(architecture["name"])
    teacher = ["timm", f"teacher.name={name.removeprefix(TIMM)}"] if name.startswith(TIMM) else [name]
    options = [f"++teacher.{key}={_typed(value)}" for key, value in architecture["options"].items()]
    overrides = shlex.join([*settings, f"teacher={teacher[0]}", *teacher[1:], *options])
    return f"""\
# {name} for {accuracy.dataset}

Weights from elsewhere, converted by `python -m gda.models.import`; `{DESCRIPTION}` says the same to programs.

| | |
| --- | --- |
{table}

## Use

As a model:

```python
from gda.models import load_exported

model = load_exported("{folder}")
```

As a teacher:

```bash
python launch.py {overrides} \\
    {shlex.quote(f"teacher.checkpoint={folder / WEIGHTS}")}
```
"""


def _figures(metrics: Mapping[str, Any]) -> str:
    shown = [f"{key} {value:g}" for key, value in metrics.items() if isinstance(value, int | float)]
    return ", ".join(shown) or "none"


def _options(options: Mapping[str, Any]) -> str:
    return "".join(f", {key}={value}" for key, value in options.items())


def _typed(value: Any) -> str:
    """Writes a value as it is typed in an override."""
    return value if isinstance(value, str) else json.dumps(value)


def _list(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _cell(value: Any) -> str:
    """Keeps a value in its cell, whatever a file of someone else's holds."""
    return " ".join(str(value).split()).replace("|", "\\|")
