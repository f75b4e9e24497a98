"""The parent run of a sweep in MLflow: made by whoever ships one of its runs first.

Its runs are found by their tags; that they lie below a parent is for the eye. Processes on many nodes
may make the parent at once. A lock keeps them from it where the file system has locks; where it has
none, several may come to be, and all agree on the oldest: each process looks again after it has made a
parent, and again after it has chosen one for its run, and whoever sees more than one moves the runs of
the others and removes those.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gda.tracking.guard import file_guard
from gda.tracking.mlflow_ledger import LEDGER_NAME, read_json
from gda.tracking.mlflow_run import runs_tagged
from gda.tracking.mlflow_tags import PARENT_TAG, RUN_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class Sweep:
    """A sweep, as the folder of its study knows it.

    Attributes:
        study: The study's folder, ``RUNS/STUDY``.
        number: The sweep's id, the name of its folder.
    """

    study: Path
    number: str

    @classmethod
    def of(cls, run_folder: Path, name: str | None) -> "Sweep | None":
        """Return the sweep of a run, unless it is one of another study: such a run is only its input.

        Args:
            run_folder: The run folder.
            name: ``STUDY/<sweep id>`` from ``run.json``.
        """
        study = run_folder.parents[1]
        of_study, _, number = (name or "").partition("/")
        return cls(study, number) if number and of_study == study.name else None

    @property
    def name(self) -> str:
        """``STUDY/<sweep id>``."""
        return f"{self.study.name}/{self.number}"

    @property
    def key(self) -> str:
        """Its parent's value of `RUN_TAG`."""
        return f"sweep:{self.name}"

    @property
    def folder(self) -> Path:
        """The sweep folder."""
        return self.study / "sweeps" / self.number

    @cached_property
    def cells(self) -> tuple[str, ...]:
        """The planned runs' folders below the study; none where there is no readable plan."""
        cells = self._plan.get("cells")
        readable = [cell for cell in cells if isinstance(cell, Mapping)] if isinstance(cells, list) else []
        return tuple(cell["folder"] for cell in readable if isinstance(cell.get("folder"), str))

    @property
    def created(self) -> int | None:
        """When it was planned, in milliseconds since 1970."""
        try:
            return int(1000 * datetime.fromisoformat(self._plan["created"]).timestamp())
        except (KeyError, TypeError, ValueError):
            return None

    def is_done(self) -> bool:
        """Say whether every planned run is done."""
        return bool(self.cells) and all(
            (read_json(self.study / cell / "status.json") or {}).get("state") == "done" for cell in self.cells
        )

    def guard(self) -> AbstractContextManager[None]:
        """Return the critical section in which its parent is made."""
        lock = self.folder / f"{LEDGER_NAME}.lock"
        return file_guard(lock, timeout_seconds=60) if self.folder.is_dir() else nullcontext()

    @cached_property
    def _plan(self) -> Mapping[str, Any]:
        return read_json(self.folder / "plan.json") or {}


def attach(client: "MlflowClient", experiment: str, run: "Run", sweep: Sweep) -> bool:
    """Put a run below its sweep's parent.

    Args:
        client: The store.
        experiment: Id of the experiment, in which the parent lies too.
        run: The run.
        sweep: Its sweep.

    Returns:
        Whether it was not there before.
    """
    before = known = run.data.tags.get(PARENT_TAG)
    with sweep.guard():
        while (parent := _parent(client, experiment, sweep)) != known:
            client.set_tag(run.info.run_id, PARENT_TAG, parent)
            known = parent
    return known != before


def finish_sweeps(client: "MlflowClient", experiment: str, study: Path, ended_at: int) -> None:
    """Mark the parents of those sweeps of a study whose runs are all done, by this or a later sweep.

    Args:
        client: The store.
        experiment: Id of the experiment.
        study: The study's folder.
        ended_at: When the last of the runs was done, in milliseconds since 1970.
    """
    for parent in runs_tagged(client, experiment, "kind", "sweep", "attributes.status = 'RUNNING'"):
        of_study, _, number = parent.data.tags.get("sweep", "").partition("/")
        if of_study == study.name and number and Sweep(study, number).is_done():
            client.set_terminated(parent.info.run_id, "FINISHED", end_time=ended_at)


def _parent(client: "MlflowClient", experiment: str, sweep: Sweep) -> str:
    """Return the id of a sweep's parent, which is made if there is none."""
    found = runs_tagged(client, experiment, RUN_TAG, sweep.key)
    if not found:
        tags = {
            RUN_TAG: sweep.key,
            "kind": "sweep",
            "study": sweep.study.name,
            "sweep": sweep.name,
            "cells": str(len(sweep.cells)),
        }
        client.create_run(experiment, start_time=sweep.created, tags=tags, run_name=f"sweep {sweep.number}")
        found = runs_tagged(client, experiment, RUN_TAG, sweep.key)
    oldest, *others = found
    for other in others:
        for child in runs_tagged(client, experiment, PARENT_TAG, other.info.run_id):
            client.set_tag(child.info.run_id, PARENT_TAG, oldest.info.run_id)
        client.delete_run(other.info.run_id)
    return str(oldest.info.run_id)
