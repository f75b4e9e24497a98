"""Mirrors a run folder into MLflow, without ever standing in the way of training.

The journals in the run folder are the truth. `ship` sends what MLflow does not have yet, and
`MLflowMirror` calls it in a thread after each checkpoint. How far the journals have been sent is
kept in ``mlflow.json``, the ledger. A process that dies between sending and noting leaves the
ledger marked ``in_flight``; whoever ships next then asks MLflow which values it has already.
"""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gda.errors import UserError
from gda.tracking.atomic import read_json_lines, write_json_atomic
from gda.tracking.lock import file_guard
from gda.tracking.mlflow_store import (
    absolute_uri,
    artifact_location,
    clean_name,
    one_line,
    open_client,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LEDGER_NAME = "mlflow.json"
RUN_TAG = "gda.run"
TAGS = (
    "study",
    "group",
    "seed",
    "distiller",
    "alignment",
    "ground_truth",
    "dataset",
    "recipe",
    "task",
    "teacher",
    "student",
    "pair",
    "label",
)
ARTIFACTS = ("config.yaml", "run.json", "report.md")

_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
_TAG_LENGTH = 5000
_FIRST_PAUSE = 5.0
_LONGEST_PAUSE = 300.0
_STATUS = {"running": "RUNNING", "done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}

_log = logging.getLogger("gda.tracking")


@dataclass(frozen=True)
class Shipment:
    """What one call of `ship` did.

    Attributes:
        run_id: The MLflow run; empty if nothing has been sent yet and nothing was to be sent.
        rows: How many rows of ``metrics.jsonl`` went out.
        changed: Whether anything went out: rows, parameters, results, artifacts or a new status.
    """

    run_id: str
    rows: int
    changed: bool


class _Value(NamedTuple):
    """One value of one metric at one epoch."""

    key: str
    epoch: int
    value: float


@dataclass
class _Ledger:
    """What has been sent where; ``mlflow.json`` in the run folder."""

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
    params_logged: bool = False
    result: str = ""
    artifacts: dict[str, str] = field(default_factory=dict)
    state: str = ""

    @classmethod
    def read(cls, folder: Path, uri: str, key: str, experiment: str | None, study: str) -> "_Ledger":
        """Read the folder's ledger; a fresh one if it speaks of another store or another run.

        Whoever ships without naming an experiment follows the one who did.
        """
        content = _read_json(folder / LEDGER_NAME) or {}
        if content.get("uri") != uri or content.get("key") != key:
            return cls(uri, key, experiment or content.get("experiment") or study)
        return cls(**{f.name: content[f.name] for f in fields(cls) if f.name in content})

    def write(self, folder: Path) -> None:
        write_json_atomic(folder / LEDGER_NAME, asdict(self))


def ship(folder: Path, uri: str, experiment: str | None = None, verify: bool = False) -> Shipment:
    """Send MLflow what it lacks of one run folder.

    Safe to call at any time, from several processes, for running and for finished runs, again
    after any failure: nothing is lost and nothing is sent twice. A run that has been deleted in
    MLflow is made again, because the run folder is the truth.

    Args:
        folder: The run folder, ``RUNS/STUDY/<name>-<hash>/seed<k>``.
        uri: The tracking URI.
        experiment: The MLflow experiment; by default the one that the run was shipped to before, else
            the study.
        verify: Ask MLflow for the run even if the ledger says that it has everything.

    Returns:
        What was done.

    Raises:
        UserError: If the folder holds no run, or the store cannot be made.
        Exception: Whatever MLflow and its database or HTTP client raise.
    """
    folder = Path(folder).absolute()
    uri = absolute_uri(uri)
    with file_guard(folder / (LEDGER_NAME + ".lock"), timeout_seconds=60):
        return _ship_guarded(folder, uri, experiment, verify)


def recorded_uri(folder: Path) -> str | None:
    """Return the tracking URI to which a run folder was shipped last, if to any."""
    uri = (_read_json(folder / LEDGER_NAME) or {}).get("uri")
    return uri if isinstance(uri, str) else None


class MLflowMirror:
    """Ships one run folder in the background while the run goes on.

    Nothing here raises into training: a store that cannot be reached costs one warning, the thread
    tries again after growing pauses, and ``python -m gda.tracking.sync`` ships the rest later.

    Args:
        folder: The run folder.
        uri: The tracking URI.
        experiment: The MLflow experiment; the study by default.
    """

    def __init__(self, folder: Path, uri: str, experiment: str | None = None) -> None:
        self.folder = Path(folder).absolute()
        self.uri = uri
        self._experiment = experiment
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._deadline = 0.0
        self._shipped = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="gda-mlflow-mirror", daemon=True)

    def start(self) -> "MLflowMirror":
        """Start the thread, which imports MLflow and registers the run; returns at once.

        To be called when ``run.json`` and ``config.yaml`` are there.
        """
        self._thread.start()
        self._wake.set()
        return self

    def notify(self) -> None:
        """Say that the journals have grown; returns at once. To be called after each checkpoint."""
        self._wake.set()

    def close(self, timeout_seconds: float = 20) -> bool:
        """Ship what is left and stop.

        Args:
            timeout_seconds: The longest time to wait; a call to the store that hangs is left behind.

        Returns:
            Whether MLflow has everything that the run folder holds.
        """
        if self._thread.ident is None:
            return False
        self._deadline = time.monotonic() + timeout_seconds
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout=timeout_seconds)
        done = not self._thread.is_alive() and self._shipped
        if not done and not self._failing:
            self._warn(f"no answer within {timeout_seconds:g} s")
        return done

    @property
    def run_id(self) -> str | None:
        """The MLflow run, once it is known."""
        return (_read_json(self.folder / LEDGER_NAME) or {}).get("run_id") or None

    def _run(self) -> None:
        pause = 0.0
        while True:
            if pause:
                self._closing.wait(pause)
            else:
                self._wake.wait()
            closing = self._closing.is_set()  # asked before shipping: the journals are complete then
            self._wake.clear()
            patient = self._shipped or self.uri.startswith("sqlite:")
            pause = 0.0 if self._attempt() else min(_LONGEST_PAUSE, max(_FIRST_PAUSE, 2 * pause))
            if closing:
                # A store that has worked deserves patience, and so does a database, which is busy
                # when many runs end together. A server that never answered does not.
                while patient and not self._shipped and time.monotonic() + 1 < self._deadline:
                    time.sleep(1)
                    self._attempt()
                return

    def _attempt(self) -> bool:
        try:
            ship(self.folder, self.uri, self._experiment)
        except Exception as error:  # training must go on, whatever it is
            self._shipped = False
            if not self._failing:
                self._failing = True
                self._warn(one_line(error))
            return False
        if self._failing:
            _log.info("MLflow at %s works again and has everything", self.uri)
        self._shipped, self._failing = True, False
        return True

    def _warn(self, why: str) -> None:
        runs, study = self.folder.parents[2], self.folder.parents[1].name
        _log.warning(
            "MLflow at %s: %s. The run goes on and its folder keeps everything; what is missing is "
            "shipped when MLflow works again, or by: python -m gda.tracking.sync %s --runs %s",
            self.uri,
            why,
            study,
            runs,
        )


def _ship_guarded(folder: Path, uri: str, experiment: str | None, verify: bool) -> Shipment:
    run_facts = _read_json(folder / "run.json")
    if run_facts is None:
        raise UserError(f"{folder} is not a run folder: it has no readable run.json.")
    status = _read_json(folder / "status.json") or {}
    state = str(status.get("state", "running"))
    finished = state in _STATUS and state != "running"
    metrics = _by_epoch(read_json_lines(folder / "metrics.jsonl"))
    timing = _by_epoch(read_json_lines(folder / "timing.jsonl"))

    study = str(run_facts.get("study") or folder.parents[1].name)
    ledger = _Ledger.read(folder, uri, _run_key(folder, run_facts), experiment, study)
    changed = False
    if not verify and ledger.run_id and not _pending(folder, ledger, metrics, timing, status, finished):
        return Shipment(ledger.run_id, 0, changed=False)
    if not (folder / LEDGER_NAME).exists() or recorded_uri(folder) != uri:
        ledger.write(folder)  # before the store is asked: a later sync finds the way to it

    client = open_client(uri)
    run = _known_run(client, ledger)
    if run is None:
        # What was sent to a run that is gone counts no more.
        ledger = _Ledger(uri, ledger.key, ledger.experiment)
        ledger.experiment_id = _experiment_id(client, uri, ledger.experiment)
        run, made = _find_or_create_run(client, ledger, run_facts, folder)
        ledger.run_id = run.info.run_id
        ledger.in_flight = not made
        changed = changed or made
        ledger.write(folder)

    # Metrics go first: they are what a person waits for, and nothing below can hold them up.
    rows, timing_rows = _unsent(ledger, metrics, timing, state == "done")
    if rows or timing_rows:
        values = [*_values(rows), *_values(timing_rows, "timing/")]
        if ledger.in_flight:
            values = _without_present(client, ledger.run_id, values)
        else:
            ledger.in_flight = True
            ledger.write(folder)
        _log_values(client, ledger.run_id, values, _moments(run_facts, metrics, timing))
        changed = True
    ledger.rows += len(rows)
    ledger.timing_rows += len(timing_rows)
    ledger.epoch = max(ledger.epoch, *rows) if rows else ledger.epoch
    ledger.timing_epoch = max(ledger.timing_epoch, *timing_rows) if timing_rows else ledger.timing_epoch
    if ledger.in_flight:
        ledger.in_flight = False
        ledger.write(folder)

    if not ledger.params_logged and (folder / "config.yaml").exists():
        _log_params(client, run, _flat_config(folder / "config.yaml"))
        ledger.params_logged = changed = True
    if finished:
        changed |= _log_result(client, ledger, status, _moments(run_facts, metrics, timing))
        changed |= _log_artifacts(client, ledger, folder)
    if ledger.state != state:
        _set_state(client, ledger.run_id, state, folder / "status.json")
        ledger.state = state
        changed = True
    if changed:
        ledger.write(folder)
    return Shipment(ledger.run_id, len(rows), changed)


# -- what the run folder holds ------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _run_key(folder: Path, run_facts: Mapping[str, Any]) -> str:
    """Name the run for MLflow: where it lies, and the random id that tells it from a namesake."""
    place = "/".join(folder.parts[-3:])
    return f"{place}:{run_facts['id']}" if run_facts.get("id") else place


def _by_epoch(rows: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Order rows by epoch; a resumed run may have written one twice, the later counts."""
    by_epoch = {row["epoch"]: row for row in rows if type(row.get("epoch")) is int}
    return dict(sorted(by_epoch.items()))


def _unsent(
    ledger: _Ledger,
    metrics: Mapping[int, Mapping[str, Any]],
    timing: Mapping[int, Mapping[str, Any]],
    done: bool,
) -> tuple[dict[int, Mapping[str, Any]], dict[int, Mapping[str, Any]]]:
    """Select the rows that the ledger does not know.

    Times of an epoch whose metrics are not there yet wait: until its checkpoint is written the
    epoch may be done again.
    """
    last = max(metrics, default=-1)
    rows = {epoch: row for epoch, row in metrics.items() if epoch > ledger.epoch}
    timing_rows = {
        epoch: row for epoch, row in timing.items() if epoch > ledger.timing_epoch and (done or epoch <= last)
    }
    return rows, timing_rows


def _values(rows: Mapping[int, Mapping[str, Any]], prefix: str = "") -> list[_Value]:
    values = []
    for epoch, row in rows.items():
        for key, raw in row.items():
            number = _number(raw)
            if key != "epoch" and number is not None:
                values.append(_Value(clean_name(prefix + key), epoch, number))
    return values


def _number(raw: Any) -> float | None:
    """Read a number as the journals hold it: JSON has no NaN, so there it is a string."""
    if isinstance(raw, bool):
        return None
    if isinstance(raw, (int, float)) or raw in ("nan", "inf", "-inf"):
        return float(raw)
    return None


def _moments(
    run_facts: Mapping[str, Any],
    metrics: Mapping[int, Mapping[str, Any]],
    timing: Mapping[int, Mapping[str, Any]],
) -> dict[int, int]:
    """Date each epoch, in milliseconds: the run's creation plus the seconds trained until then.

    Computed from the folder alone, so that a late replay shows the run's own time axis.
    """
    start = _milliseconds(run_facts.get("created"))
    moments = {}
    seconds = 0.0
    for count, epoch in enumerate(sorted({*metrics, *timing})):
        spent = _number(timing.get(epoch, {}).get("seconds"))
        seconds += spent if spent is not None and 0 <= spent < 1e9 else 0.0
        moments[epoch] = start + count + int(1000 * seconds)
    return moments


def _milliseconds(created: Any) -> int:
    """Read the moment of creation, an ISO text or seconds since 1970; 0 if it is neither."""
    if isinstance(created, str):
        try:
            return int(1000 * datetime.fromisoformat(created).timestamp())
        except ValueError:
            return 0
    return int(1000 * created) if isinstance(created, (int, float)) else 0


def _flat_config(path: Path) -> dict[str, str]:
    """Flatten the resolved config to dotted keys; lists are one value."""
    from omegaconf import OmegaConf

    def leaves(node: Any, prefix: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
        elif isinstance(node, str):
            yield prefix, node
        else:
            yield prefix, json.dumps(node, default=str)

    config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return dict(leaves(config, "")) if isinstance(config, dict) else {}


def _result_values(status: Mapping[str, Any]) -> dict[str, float]:
    """Flatten the numbers of the result: ``result/last/test_top1``, ``result/test_top1_oracle``."""

    def leaves(node: Any, prefix: str) -> Iterator[tuple[str, float]]:
        if isinstance(node, Mapping):
            for key, value in node.items():
                yield from leaves(value, f"{prefix}/{key}")
        elif (number := _number(node)) is not None:
            yield clean_name(prefix), number

    return dict(leaves(status.get("result"), "result"))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _result_digest(status: Mapping[str, Any]) -> str:
    values = _result_values(status)
    return _digest(json.dumps(values, sort_keys=True).encode()) if values else ""


def _artifact_digests(folder: Path) -> dict[str, str]:
    return {name: _digest((folder / name).read_bytes()) for name in ARTIFACTS if (folder / name).is_file()}


def _pending(
    folder: Path,
    ledger: _Ledger,
    metrics: Mapping[int, Mapping[str, Any]],
    timing: Mapping[int, Mapping[str, Any]],
    status: Mapping[str, Any],
    finished: bool,
) -> bool:
    """Whether the folder holds anything that the ledger does not."""
    rows, timing_rows = _unsent(ledger, metrics, timing, status.get("state") == "done")
    return bool(
        rows
        or timing_rows
        or ledger.in_flight
        or ledger.state != status.get("state", "running")
        or (not ledger.params_logged and (folder / "config.yaml").exists())
        or (finished and ledger.result != _result_digest(status))
        or (finished and ledger.artifacts != _artifact_digests(folder))
    )


# -- what MLflow holds --------------------------------------------------------------------------


def _known_run(client: "MlflowClient", ledger: _Ledger) -> "Run | None":
    """Fetch the run that the ledger names, unless it is gone or in MLflow's trash."""
    from mlflow.exceptions import MlflowException

    if not ledger.run_id:
        return None
    try:
        run = client.get_run(ledger.run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location(uri, name)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another run of the study was faster
    if found is None or found.lifecycle_stage != "active":
        raise UserError(
            f"The MLflow experiment {name!r} is in MLflow's trash. Restore it, with "
            f"mlflow experiments restore, or give the study another name."
        )
    return str(found.experiment_id)


def _find_or_create_run(
    client: "MlflowClient", ledger: _Ledger, run_facts: Mapping[str, Any], folder: Path
) -> tuple["Run", bool]:
    """Return the run of that key, and whether it has been made just now.

    It may exist although the ledger does not know: a creation whose answer got lost, a ledger that
    was deleted, a store that is reached by another URI.
    """
    quote = '"' if "'" in ledger.key else "'"
    found = client.search_runs(
        [ledger.experiment_id],
        filter_string=f"tags.`{RUN_TAG}` = {quote}{ledger.key}{quote}",
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    if found:
        return client.get_run(found[0].info.run_id), False
    name = f"{folder.parent.name}/{folder.name}"
    tags = {tag: _tag_value(run_facts[tag]) for tag in TAGS if run_facts.get(tag) is not None}
    commit = run_facts.get("git", {}).get("commit") if isinstance(run_facts.get("git"), dict) else None
    if commit:
        tags["git.commit"] = tags["mlflow.source.git.commit"] = str(commit)
    tags[RUN_TAG] = ledger.key
    tags["mlflow.runName"] = name
    start = _milliseconds(run_facts.get("created")) or int(1000 * time.time())
    return client.create_run(ledger.experiment_id, start_time=start, tags=tags, run_name=name), True


def _tag_value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text[:_TAG_LENGTH]


def _without_present(client: "MlflowClient", run_id: str, values: Sequence[_Value]) -> list[_Value]:
    """Leave out the values that MLflow has: the last sender did not live to note them."""
    present = {
        (key, metric.step)
        for key in {value.key for value in values}
        for metric in client.get_metric_history(run_id, key)
    }
    return [value for value in values if (value.key, value.epoch) not in present]


def _log_values(
    client: "MlflowClient", run_id: str, values: Sequence[_Value], moments: Mapping[int, int]
) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(v.key, v.value, moments.get(v.epoch, 0), v.epoch) for v in values]
    for start in range(0, len(metrics), _METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_BATCH], synchronous=True)


def _log_params(client: "MlflowClient", run: "Run", config: Mapping[str, str]) -> None:
    """Log the parameters that the run lacks: MLflow refuses to change one."""
    from mlflow.entities import Param
    from mlflow.utils import validation

    longest = getattr(validation, "MAX_PARAM_VAL_LENGTH", 500)
    clean = {clean_name(key): value[:longest] for key, value in config.items()}
    params = [Param(key, value) for key, value in clean.items() if key not in run.data.params]
    for start in range(0, len(params), _PARAMS_PER_BATCH):
        batch = params[start : start + _PARAMS_PER_BATCH]
        client.log_batch(run.info.run_id, params=batch, synchronous=True)


def _log_result(
    client: "MlflowClient", ledger: _Ledger, status: Mapping[str, Any], moments: Mapping[int, int]
) -> bool:
    """Log the final metrics, at the epoch at which the run ended."""
    digest = _result_digest(status)
    if ledger.result == digest:
        return False
    epoch = status.get("epoch")
    step = epoch if type(epoch) is int else max(moments, default=0)
    values = [_Value(key, step, number) for key, number in _result_values(status).items()]
    last = {step: max(moments.values(), default=0)}
    _log_values(client, ledger.run_id, _without_present(client, ledger.run_id, values), last)
    ledger.result = digest
    return True


def _log_artifacts(client: "MlflowClient", ledger: _Ledger, folder: Path) -> bool:
    """Log the files that MLflow lacks or has in an older version."""
    changed = False
    for name, digest in _artifact_digests(folder).items():
        if ledger.artifacts.get(name) != digest:
            client.log_artifact(ledger.run_id, str(folder / name))
            ledger.artifacts[name] = digest
            changed = True
    return changed


def _set_state(client: "MlflowClient", run_id: str, state: str, status_file: Path) -> None:
    status = _STATUS.get(state, "RUNNING")
    if status == "RUNNING":
        client.update_run(run_id, status=status)  # also a killed run that has been resumed
        return
    # Dated by the file, so that a late sync shows when the run ended.
    client.set_terminated(run_id, status, end_time=int(1000 * status_file.stat().st_mtime))
