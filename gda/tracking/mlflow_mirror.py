"""Mirrors a run folder into MLflow while the run goes on, without ever standing in its way."""

import logging
import threading
import time
from pathlib import Path

from gda.tracking.mlflow_ledger import read_json, recorded, recorded_uri
from gda.tracking.mlflow_ship import ship
from gda.tracking.mlflow_store import one_line

__all__ = ["MLflowMirror", "recorded_uri", "ship"]

_FIRST_PAUSE = 5.0
_LONGEST_PAUSE = 300.0
# Seconds that the end of a run may wait for MLflow. Nothing is down where a database does not answer: when
# many runs end together it is busy, and so are the CPUs, for importing MLflow alone takes seconds each.
# After a signal there is little time: the job must still ask to be requeued.
_DATABASE_PATIENCE = 120.0
_SERVER_PATIENCE = 20.0
_SIGNAL_PATIENCE = 5.0

_log = logging.getLogger("gda.tracking")


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

        To be called when ``run.json`` and ``config.yaml`` are there. Nothing where it is started already.
        """
        if self._thread.ident is None:
            self._thread.start()
            self._wake.set()
        return self

    def notify(self) -> None:
        """Say that the journals have grown; returns at once. To be called after each checkpoint."""
        self._wake.set()

    def close(self, timeout_seconds: float | None = None) -> bool:
        """Ship what is left and stop.

        Args:
            timeout_seconds: The longest time to wait; a call to the store that hangs is left behind. By
                default 20 s, for a SQLite database 120 s, and 5 s if a signal stopped the run.

        Returns:
            Whether MLflow has everything that the run folder holds.
        """
        if self._thread.ident is None:
            return False
        if timeout_seconds is None:
            timeout_seconds = self._patience()
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
        return recorded(self.folder).get("run_id") or None

    def _patience(self) -> float:
        if (read_json(self.folder / "status.json") or {}).get("state") in ("preempted", "interrupted"):
            return _SIGNAL_PATIENCE
        return _DATABASE_PATIENCE if self._is_database else _SERVER_PATIENCE

    @property
    def _is_database(self) -> bool:
        return self.uri.startswith("sqlite:")

    def _run(self) -> None:
        pause = 0.0
        while True:
            if pause:
                self._closing.wait(pause)
            else:
                self._wake.wait()
            closing = self._closing.is_set()  # asked before shipping: the journals are complete then
            self._wake.clear()
            patient = self._shipped or self._is_database
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
