"""Many runs of one sweep that log into one MLflow store at the same time, and what arrives there.

Each run is a process of its own that writes its run folder as training does, without pausing to train,
and mirrors it into MLflow. They begin together, MLflow being imported already. Afterwards every value is
read back.
"""

import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from gda.tracking.atomic import write_json_atomic
from gda.tracking.mlflow_ledger import recorded
from gda.tracking.mlflow_mirror import MLflowMirror
from gda.tracking.mlflow_run import runs_tagged
from gda.tracking.mlflow_store import absolute_uri, configure_environment, default_uri, open_client
from gda.tracking.mlflow_tags import PARENT_TAG, RUN_TAG
from gda.tracking.run_folder import RunFolder

PROCESSES, EPOCHS, METRICS = 16, 200, 20
STUDY, SWEEP = "bench_tracking", "2000-01-01_00-00-00"

# Longer than a run has: what is asked is whether anything is lost, however busy the machine is.
_PATIENCE_SECONDS = 600.0

NOTES = (
    "seconds: from the first value to the end of the last process; MLflow was imported before.",
    "slowest close: how long the slowest run waited, after its last epoch, for MLflow to have everything.",
    "left behind: runs that gave up waiting, for which their folder keeps everything and "
    "python -m gda.tracking.sync ships the rest.",
)


@dataclass(frozen=True)
class Shipped:
    """What arrived in MLflow.

    Attributes:
        processes: Runs that logged at the same time.
        written: Values in the journals of their run folders.
        found: Values that MLflow has as they were written.
        wrong: Values that MLflow has otherwise.
        twice: Values that MLflow has more than once.
        parents: Parent runs that the runs of the sweep have.
        left_behind: Runs whose mirror stopped before MLflow had everything.
        seconds: Seconds from the first value to the end of the last process.
        slowest_close: Longest wait of a run for its mirror at its end, in seconds.
    """

    processes: int
    written: int
    found: int
    wrong: int
    twice: int
    parents: int
    left_behind: int
    seconds: float
    slowest_close: float

    @property
    def lost(self) -> int:
        """Values that MLflow does not have."""
        return self.written - self.found - self.wrong


def measure(
    processes: int = PROCESSES,
    epochs: int = EPOCHS,
    metrics: int = METRICS,
    uri: str | None = None,
    runs: Path | None = None,
) -> Shipped:
    """Lets processes log at the same time, and compares what MLflow has with what they wrote.

    Args:
        processes: How many runs.
        epochs: Epochs of each.
        metrics: Metrics of each epoch; four times are added.
        uri: The tracking URI; by default the SQLite database beside the runs, made by the processes.
        runs: Folder for the runs; by default one that is removed afterwards.

    Raises:
        RuntimeError: A process failed.
    """
    if runs is None:
        with tempfile.TemporaryDirectory() as temporary:
            return measure(processes, epochs, metrics, uri, Path(temporary))
    uri = absolute_uri(uri or default_uri(runs))
    folders = [runs.absolute() / STUDY / "run-000000" / f"seed{seed}" for seed in range(processes)]
    sweep = runs / STUDY / "sweeps" / SWEEP
    sweep.mkdir(parents=True)
    cells = [{"folder": f"{folder.parent.name}/{folder.name}"} for folder in folders]
    write_json_atomic(sweep / "plan.json", {"created": "2000-01-01T00:00:00+0000", "cells": cells})
    command = [sys.executable, "-m", "gda.bench.tracking", uri, str(epochs), str(metrics)]
    done = subprocess.run([*command, *map(str, folders)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError("a process that logs has failed: see above")
    seconds, ends = json.loads(done.stdout)
    return _read_back(uri, folders, epochs, metrics, ends, seconds)


def tracking_table(shipped: Shipped, title: str) -> Table:
    """Lays out what arrived, one figure a line."""
    table = Table(title=title, title_justify="left", min_width=70)
    table.add_column("")
    table.add_column("", justify="right", no_wrap=True)
    for name, value in (
        ("values written", f"{shipped.written:,}"),
        ("found in MLflow", f"{shipped.found:,}"),
        ("lost", f"{shipped.lost:,}"),
        ("wrong", f"{shipped.wrong:,}"),
        ("twice", f"{shipped.twice:,}"),
        ("parent runs of the sweep", str(shipped.parents)),
        ("runs left behind", str(shipped.left_behind)),
        ("seconds", f"{shipped.seconds:.1f}"),
        ("values a second", f"{shipped.found / shipped.seconds:,.0f}"),
        ("slowest close, s", f"{shipped.slowest_close:.1f}"),
    ):
        table.add_row(name, value)
    return table


def write_and_ship(folder: Path, uri: str, epochs: int, metrics: int) -> tuple[bool, float]:
    """Writes one run as training does and mirrors it; the work of one process.

    Returns:
        Whether MLflow had everything when the mirror closed, and the seconds that this took.
    """
    seed = int(folder.name.removeprefix("seed"))
    run = RunFolder(folder)
    run.begin({"seed": seed}, {"study": STUDY, "seed": seed, "sweep": f"{STUDY}/{SWEEP}"}, epochs)
    mirror = MLflowMirror(folder, uri).start()
    for row, timing in _rows(seed, epochs, metrics):
        run.append(row, timing)
        mirror.notify()
    run.finish({})
    ended = time.perf_counter()
    shipped = mirror.close(_PATIENCE_SECONDS)
    return shipped, time.perf_counter() - ended


def _all_at_once(
    uri: str, epochs: int, metrics: int, folders: Sequence[Path]
) -> tuple[float, list[tuple[bool, float]]]:
    """Lets one process a folder write and ship; returns the seconds that it took, and how each ended."""
    configure_environment()
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - once, before the processes part

    forks = multiprocessing.get_context("fork")
    with forks.Pool(len(folders), forks.Barrier(len(folders)).wait, maxtasksperchild=1) as pool:
        started = time.perf_counter()
        work = [(folder, uri, epochs, metrics) for folder in folders]
        ends = pool.starmap(write_and_ship, work, chunksize=1)
        return time.perf_counter() - started, ends


def _rows(seed: int, epochs: int, metrics: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Returns the rows of metrics and of times that a run writes: the same whenever it is asked."""
    draws = random.Random(seed)
    rows = []
    for epoch in range(epochs):
        row = {"epoch": epoch, **{f"metric_{k}": draws.gauss(0, 1) for k in range(metrics)}}
        times = ("train_seconds", "evaluate_seconds", "save_seconds", "images_per_second")
        rows.append((row, {"epoch": epoch, **{name: draws.random() for name in times}}))
    return rows


def _read_back(
    uri: str, folders: list[Path], epochs: int, metrics: int, ends: list[tuple[bool, float]], seconds: float
) -> Shipped:
    """Compares every value in MLflow with what the processes wrote."""
    client = open_client(uri)
    experiment = client.get_experiment_by_name(STUDY)
    keys = [recorded(folder).get("key") for folder in folders]
    runs = [
        runs_tagged(client, experiment.experiment_id, RUN_TAG, key) if experiment and key else []
        for key in keys
    ]
    count: Counter[str] = Counter()
    for seed in range(len(folders)):
        expected: dict[str, dict[int, float]] = {}
        for row, timing in _rows(seed, epochs, metrics):
            epoch = row["epoch"]
            for key, value in [*row.items(), *((f"timing/{k}", v) for k, v in timing.items())]:
                if not key.endswith("epoch"):
                    expected.setdefault(key, {})[epoch] = value
        for key, values in expected.items():
            count["written"] += len(values)
            history = [m for run in runs[seed] for m in client.get_metric_history(run.info.run_id, key)]
            arrived = {metric.step: metric.value for metric in history}
            count["twice"] += len(history) - len(arrived)
            for epoch, value in values.items():
                if epoch in arrived:
                    count["found" if arrived[epoch] == value else "wrong"] += 1
    parents = {run.data.tags.get(PARENT_TAG) for found in runs for run in found}
    return Shipped(
        processes=len(folders),
        written=count["written"],
        found=count["found"],
        wrong=count["wrong"],
        twice=count["twice"],
        parents=len(parents),
        left_behind=sum(not shipped for shipped, _ in ends),
        seconds=seconds,
        slowest_close=max(close_seconds for _, close_seconds in ends),
    )


if __name__ == "__main__":
    store, each_epochs, each_metrics, *places = sys.argv[1:]
    print(json.dumps(_all_at_once(store, int(each_epochs), int(each_metrics), list(map(Path, places)))))
