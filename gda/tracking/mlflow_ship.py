"""Ships one run folder into MLflow: sends what MLflow does not have yet, as often as one likes.

The journals in the run folder are the truth. How far they have been sent is kept in the ledger
(`gda.tracking.mlflow_ledger`), which is marked before values leave and again when they have arrived.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gda.tracking.guard import file_guard
from gda.tracking.mlflow_content import RunContent, values_of
from gda.tracking.mlflow_ledger import LEDGER_NAME, Ledger, recorded_uri
from gda.tracking.mlflow_run import (
    experiment_id,
    find_or_create,
    known_run,
    log_params,
    log_values,
    set_state,
    update_tags,
    without_present,
)
from gda.tracking.mlflow_store import absolute_uri, open_client
from gda.tracking.mlflow_sweep import Sweep, attach, finish_sweeps

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_log = logging.getLogger("gda.tracking")


@dataclass(frozen=True)
class Shipment:
    """What one call of `ship` did.

    Attributes:
        run_id: The MLflow run.
        rows: How many rows of ``metrics.jsonl`` went out.
        changed: Whether anything went out: rows, tags, parameters, results, artifacts or a new status.
    """

    run_id: str
    rows: int
    changed: bool


def ship(folder: Path, uri: str, experiment: str | None = None, verify: bool = False) -> Shipment:
    """Send MLflow what it lacks of one run folder.

    Safe to call at any time, from several processes, for running and for finished runs, again
    after any failure: nothing is lost and nothing is sent twice. A run that has been deleted in
    MLflow is made again, because the run folder is the truth; and so is one whose epochs were done
    again and came out differently, because MLflow can't take a value back.

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


def _ship_guarded(folder: Path, uri: str, experiment: str | None, verify: bool) -> Shipment:
    content = RunContent.read(folder)
    ledger = Ledger.read(folder, uri, content.key, experiment, content.study)
    if not verify and ledger.run_id and not content.is_behind(ledger):
        return Shipment(ledger.run_id, 0, changed=False)
    if recorded_uri(folder) != uri:
        ledger.write(folder)  # before the store is asked: a later sync finds the way to it

    client = open_client(uri)
    changed = False
    run = known_run(client, ledger.run_id)
    if run is not None and content.contradicts(ledger):
        _log.warning("%s: epochs were done again; its earlier MLflow run is in MLflow's trash", folder)
        client.delete_run(ledger.run_id)
        run = None
    if run is None:
        # What was sent to a run that is gone counts no more.
        ledger = Ledger(uri, ledger.key, ledger.experiment)
        ledger.experiment_id = experiment_id(client, uri, ledger.experiment)
        name = f"{folder.parent.name}/{folder.name}"
        run, changed = find_or_create(client, ledger.experiment_id, name, content.tags, content.created)
        ledger.run_id = run.info.run_id
        ledger.in_flight = not changed
        ledger.write(folder)

    # Metrics go first: they are what a person waits for, and nothing below can hold them up.
    rows = _send_rows(client, ledger, content)
    changed |= rows is not None
    tagged = (verify or ledger.tags != content.tags_digest) and _send_tags(client, ledger, content, run)
    changed |= tagged
    if not ledger.params_logged and content.has_config:
        log_params(client, run, content.params)
        ledger.params_logged = changed = True
    if content.ended:
        changed |= _send_result(client, ledger, content)
        changed |= _send_artifacts(client, ledger, content)
    moved = ledger.state != content.state
    if moved:
        set_state(client, ledger.run_id, content.state, content.ended_at if content.ended else 0)
    if content.state == "done" and (moved or tagged):
        finish_sweeps(client, ledger.experiment_id, folder.parents[1], content.ended_at)
    if moved:
        ledger.state = content.state
        changed = True
    if changed:
        ledger.write(folder)
    return Shipment(ledger.run_id, rows or 0, changed)


def _send_rows(client: "MlflowClient", ledger: Ledger, content: RunContent) -> int | None:
    """Send the new rows; returns how many of them are metrics, ``None`` if there was no row at all."""
    rows, timing_rows = content.unsent(ledger)
    if rows or timing_rows:
        values = [*values_of(rows), *values_of(timing_rows, "timing/")]
        if ledger.in_flight:
            values = without_present(client, ledger.run_id, values)
        ledger.in_flight = True
        ledger.seen_epoch = max([ledger.seen_epoch, *rows])
        ledger.seen = content.rows_digest(ledger.seen_epoch)
        ledger.write(content.folder)
        log_values(client, ledger.run_id, values, content.moments)
    if ledger.in_flight:
        ledger.sent(rows, timing_rows)
        ledger.write(content.folder)
    return len(rows) if rows or timing_rows else None


def _send_tags(client: "MlflowClient", ledger: Ledger, content: RunContent, run: "Run") -> bool:
    """Send new tags, the parent among them; says whether anything changed.

    A run that is tried again by a later sweep moves to that one; tags that ``run.json`` no longer
    accounts for stay.
    """
    changed = update_tags(client, run, content.tags)
    sweep = Sweep.of(content.folder, content.sweep)
    if sweep is not None:
        changed |= attach(client, ledger.experiment_id, run, sweep)
    if ledger.tags != content.tags_digest:
        ledger.tags = content.tags_digest
        changed = True
    return changed


def _send_result(client: "MlflowClient", ledger: Ledger, content: RunContent) -> bool:
    """Send the final metrics, at the epoch at which the run ended; says whether there were new ones."""
    if ledger.result == content.result_digest:
        return False
    values = without_present(client, ledger.run_id, content.result)
    log_values(client, ledger.run_id, values, {content.last_epoch: max(content.moments.values(), default=0)})
    ledger.result = content.result_digest
    return True


def _send_artifacts(client: "MlflowClient", ledger: Ledger, content: RunContent) -> bool:
    """Send the files that MLflow lacks or has in an older version; says whether there were any."""
    changed = False
    for name, digest in content.artifacts().items():
        if ledger.artifacts.get(name) != digest:
            client.log_artifact(ledger.run_id, str(content.folder / name))
            ledger.artifacts[name] = digest
            changed = True
    return changed
