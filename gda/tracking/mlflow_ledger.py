"""What has been sent to MLflow of a run folder: ``mlflow.json``, the ledger in that folder."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from gda.tracking.atomic import write_json_atomic

LEDGER_NAME = "mlflow.json"


@dataclass
class Ledger:
    """How far the journals of one run folder have been sent, and where to.

    Attributes:
        uri: The tracking URI.
        key: The run folder's name in MLflow (`RunContent.key`).
        experiment: Name of the MLflow experiment.
        experiment_id: Its id; empty until the store has answered.
        run_id: The MLflow run; empty until it has been made.
        rows: How many rows of ``metrics.jsonl`` have been sent.
        epoch: The last epoch of them.
        timing_rows: How many rows of ``timing.jsonl`` have been sent.
        timing_epoch: The last epoch of them.
        in_flight: Values are being sent. A process that dies meanwhile leaves it true, and whoever
            ships next asks MLflow which values it has already.
        seen_epoch: The last epoch of ``metrics.jsonl`` that has been sent or is being sent.
        seen: Digest of the rows up to that epoch, as they were sent.
        tags: Digest of the tags that have been sent.
        params_logged: The config has been sent.
        result: Digest of the result that has been sent.
        artifacts: Digests of the files that have been sent, by name.
        state: The state of the run that has been sent.
    """

    uri: str
    key: str
    experiment: str
    experiment_id: str = ""
    run_id: str = ""
    rows: int = 0
    epoch: int = -1
    timing_rows: int = 0
    timing_epoch: int = -1
    in_flight: bool = False
    seen_epoch: int = -1
    seen: str = ""
    tags: str = ""
    params_logged: bool = False
    result: str = ""
    artifacts: dict[str, str] = field(default_factory=dict)
    state: str = ""

    @classmethod
    def read(cls, folder: Path, uri: str, key: str, experiment: str | None, study: str) -> "Ledger":
        """Read the folder's ledger; a fresh one if it speaks of another store or another run.

        Whoever ships without naming an experiment follows the one who did.
        """
        content = recorded(folder)
        if content.get("uri") != uri or content.get("key") != key:
            return cls(uri, key, experiment or content.get("experiment") or study)
        return cls(**{f.name: content[f.name] for f in fields(cls) if f.name in content})

    def write(self, folder: Path) -> None:
        """Write it into the run folder."""
        write_json_atomic(folder / LEDGER_NAME, asdict(self))

    def sent(self, rows: Mapping[int, Any], timing_rows: Mapping[int, Any]) -> None:
        """Note that these rows, by epoch, have arrived."""
        self.rows += len(rows)
        self.epoch = max(self.epoch, *rows) if rows else self.epoch
        self.timing_rows += len(timing_rows)
        self.timing_epoch = max(self.timing_epoch, *timing_rows) if timing_rows else self.timing_epoch
        self.in_flight = False


def recorded(folder: Path) -> dict[str, Any]:
    """Return the ledger of a run folder as it stands; empty if there is none."""
    return read_json(folder / LEDGER_NAME) or {}


def recorded_uri(folder: Path) -> str | None:
    """Return the tracking URI to which a run folder was shipped last, if to any."""
    uri = recorded(folder).get("uri")
    return uri if isinstance(uri, str) else None


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; ``None`` if there is no such file, or something else in it."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None
