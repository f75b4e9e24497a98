"""What a run folder holds, in the words of MLflow; the same for a late replay and a mirror that keeps up."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from gda.errors import UserError
from gda.tracking.atomic import read_json_lines
from gda.tracking.mlflow_ledger import Ledger, read_json
from gda.tracking.mlflow_store import clean_name
from gda.tracking.mlflow_tags import tags_of

ARTIFACTS = ("config.yaml", "run.json", "code.diff", "report.md")

Rows = Mapping[int, Mapping[str, Any]]
"""Rows of a journal by epoch."""


class Value(NamedTuple):
    """One value of one metric at one epoch."""

    key: str
    epoch: int
    value: float


@dataclass(frozen=True)
class RunContent:
    """One run folder at one moment.

    Attributes:
        folder: The run folder.
        facts: ``run.json``.
        status: ``status.json``.
        metrics: ``metrics.jsonl``.
        timing: ``timing.jsonl``.
    """

    folder: Path
    facts: Mapping[str, Any]
    status: Mapping[str, Any]
    metrics: Rows
    timing: Rows

    @classmethod
    def read(cls, folder: Path) -> "RunContent":
        """Read a run folder.

        Raises:
            UserError: If it holds no run, or a journal is damaged.
        """
        facts = read_json(folder / "run.json")
        if facts is None:
            raise UserError(f"{folder} is not a run folder: it has no readable run.json.")
        metrics, timing = (
            _by_epoch(read_json_lines(folder / f"{name}.jsonl")) for name in ("metrics", "timing")
        )
        return cls(folder, facts, read_json(folder / "status.json") or {}, metrics, timing)

    @property
    def key(self) -> str:
        """Name of the run: where it lies, and the random id that tells it from a namesake."""
        return f"{'/'.join(self.folder.parts[-3:])}:{self.facts.get('id', '')}"

    @property
    def study(self) -> str:
        """Name of the study."""
        return str(self.facts.get("study") or self.folder.parents[1].name)

    @property
    def state(self) -> str:
        """State of the run: running, done, failed, interrupted or preempted."""
        return str(self.status.get("state", "running"))

    @property
    def ended(self) -> bool:
        """Whether nobody works on the run any more; one that was preempted comes back by itself."""
        return self.state in ("done", "failed", "interrupted")

    @property
    def has_config(self) -> bool:
        """Whether ``config.yaml`` is there."""
        return (self.folder / "config.yaml").exists()

    @property
    def created(self) -> int:
        """When the run was made, in milliseconds since 1970; 0 when unknown."""
        try:
            return int(1000 * datetime.fromisoformat(self.facts["created"]).timestamp())
        except (KeyError, TypeError, ValueError):
            return 0

    @property
    def ended_at(self) -> int:
        """When ``status.json`` was written, in milliseconds since 1970."""
        return int(1000 * (self.folder / "status.json").stat().st_mtime)

    @cached_property
    def moments(self) -> dict[int, int]:
        """Each epoch's date in milliseconds: the run's creation plus the seconds spent until then."""
        moments = {}
        seconds = 0.0
        for count, epoch in enumerate(sorted({*self.metrics, *self.timing})):
            seconds += sum(
                number
                for key, raw in self.timing.get(epoch, {}).items()
                if key.endswith("seconds") and (number := _number(raw)) is not None
            )
            moments[epoch] = self.created + count + int(1000 * seconds)
        return moments

    @cached_property
    def tags(self) -> dict[str, str]:
        """What the run is, for MLflow's search."""
        return tags_of(self.facts, self.key)

    @property
    def tags_digest(self) -> str:
        """Tells one set of tags from another."""
        return _digest(json.dumps(self.tags, sort_keys=True).encode())

    @property
    def sweep(self) -> str | None:
        """The sweep that the run belongs to, ``STUDY/<sweep id>``, if it belongs to one."""
        name = self.facts.get("sweep")
        return name if isinstance(name, str) else None

    @cached_property
    def params(self) -> dict[str, str]:
        """The resolved config under dotted keys; lists are one value."""
        from omegaconf import OmegaConf

        def leaves(node: Any, prefix: str) -> Iterator[tuple[str, str]]:
            if isinstance(node, dict) and node:
                for key, value in node.items():
                    yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
            else:
                yield prefix, node if isinstance(node, str) else json.dumps(node, default=str)

        config = OmegaConf.to_container(OmegaConf.load(self.folder / "config.yaml"), resolve=False)
        return dict(leaves(config, "")) if config else {}

    @cached_property
    def result(self) -> list[Value]:
        """The numbers of the result, ``result/last/test_top1`` and so on, where the run ended."""

        def leaves(node: Any, name: str) -> Iterator[Value]:
            if isinstance(node, Mapping):
                for key, value in node.items():
                    yield from leaves(value, f"{name}/{key}")
            elif (number := _number(node)) is not None:
                yield Value(clean_name(name), self.last_epoch, number)

        return list(leaves(self.status.get("result"), "result"))

    @property
    def result_digest(self) -> str:
        """Tells one result from another; empty without one."""
        values = {value.key: value.value for value in self.result}
        return _digest(json.dumps(values, sort_keys=True).encode()) if values else ""

    @property
    def last_epoch(self) -> int:
        """The epoch that the run has reached."""
        epoch = self.status.get("epoch")
        return epoch if type(epoch) is int else max(self.moments, default=0)

    def artifacts(self) -> dict[str, str]:
        """Return the digests of the files that MLflow gets, by name."""
        paths = {name: self.folder / name for name in ARTIFACTS}
        return {name: _digest(path.read_bytes()) for name, path in paths.items() if path.is_file()}

    def unsent(self, ledger: Ledger) -> tuple[Rows, Rows]:
        """Select the rows of metrics and of timing that the ledger does not know.

        Times of an epoch whose metrics are not there yet wait: until its checkpoint is written the
        epoch may be done again.
        """
        last = max(self.metrics, default=-1)
        done = self.state == "done"
        rows = {epoch: row for epoch, row in self.metrics.items() if epoch > ledger.epoch}
        timing_rows = {
            epoch: row
            for epoch, row in self.timing.items()
            if epoch > ledger.timing_epoch and (done or epoch <= last)
        }
        return rows, timing_rows

    def rows_digest(self, last_epoch: int) -> str:
        """Tells one beginning of ``metrics.jsonl`` from another, up to and including an epoch."""
        rows = [row for epoch, row in self.metrics.items() if epoch <= last_epoch]
        return _digest(json.dumps(rows, sort_keys=True).encode())

    def contradicts(self, ledger: Ledger) -> bool:
        """Say whether rows that have been sent stand differently in the journal now.

        A run that has lost its last checkpoint does epochs again, and on a GPU they may come out
        differently. While it has not come as far again, the journal is only shorter.
        """
        as_far = self.state == "done" or max(self.metrics, default=-1) >= ledger.seen_epoch
        return bool(ledger.seen) and as_far and self.rows_digest(ledger.seen_epoch) != ledger.seen

    def is_behind(self, ledger: Ledger) -> bool:
        """Say whether the folder holds anything that the ledger does not."""
        return bool(
            any(self.unsent(ledger))
            or ledger.in_flight
            or self.contradicts(ledger)
            or ledger.tags != self.tags_digest
            or ledger.state != self.state
            or (not ledger.params_logged and self.has_config)
            or (self.ended and ledger.result != self.result_digest)
            or (self.ended and ledger.artifacts != self.artifacts())
        )


def values_of(rows: Rows, prefix: str = "") -> list[Value]:
    """Return the numbers of some rows as metrics."""
    return [
        Value(clean_name(prefix + key), epoch, number)
        for epoch, row in rows.items()
        for key, raw in row.items()
        if key != "epoch" and (number := _number(raw)) is not None
    ]


def _by_epoch(rows: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Order rows by epoch; a resumed run may have written one twice, the later counts."""
    by_epoch = {row["epoch"]: row for row in rows if type(row.get("epoch")) is int}
    return dict(sorted(by_epoch.items()))


def _number(raw: Any) -> float | None:
    """Read a number as the journals hold it: JSON has no NaN, so there it is a string."""
    if isinstance(raw, bool):
        return None
    if isinstance(raw, (int, float)) or raw in ("nan", "inf", "-inf"):
        return float(raw)
    return None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
