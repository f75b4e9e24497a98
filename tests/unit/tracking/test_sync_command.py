import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from run_folders import metric_row, write_rows, write_run, write_status

from gda.tracking import mlflow_mirror, mlflow_run
from gda.tracking.mlflow_ledger import recorded_uri
from gda.tracking.mlflow_mirror import MLflowMirror
from gda.tracking.mlflow_store import prepare_store
from gda.tracking.sync import main


@pytest.fixture(autouse=True)
def _no_user_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_one_study_then_all(tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    for seed in (0, 1):
        write_run(runs, seed=seed, epochs=3, state="done")
    write_run(runs, epochs=2, study="teachers")
    assert main(["demo", "--runs", str(runs)]) == 0
    assert lines(capsys) == [
        "demo/kd-resnet20-0a1b2c/seed0: shipped 3 rows",
        "demo/kd-resnet20-0a1b2c/seed1: shipped 3 rows",
        "2 runs: 2 shipped (6 rows), 0 up to date, 0 failed",
    ]
    assert main(["--runs", str(runs)]) == 0
    assert lines(capsys) == [
        "demo/kd-resnet20-0a1b2c/seed0: up to date",
        "demo/kd-resnet20-0a1b2c/seed1: up to date",
        "teachers/kd-resnet20-0a1b2c/seed0: shipped 2 rows",
        "3 runs: 1 shipped (2 rows), 2 up to date, 0 failed",
    ]
    names = {experiment.name for experiment in MlflowClient(uri).search_experiments()}
    assert names == {"Default", "demo", "teachers"}


def test_a_bad_folder_does_not_hold_up_the_rest(
    tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write_run(tmp_path / "runs", seed=0, epochs=3)
    write_run(tmp_path / "runs", seed=1, epochs=3)
    (bad / "metrics.jsonl").write_text("rubbish\n" + (bad / "metrics.jsonl").read_text())
    assert main(["--runs", str(tmp_path / "runs")]) == 1
    first, second, total = lines(capsys)
    assert first.startswith("demo/kd-resnet20-0a1b2c/seed0: failed: ")
    assert "metrics.jsonl, line 1" in first
    assert second.endswith("seed1: shipped 3 rows")
    assert total == "2 runs: 1 shipped (3 rows), 0 up to date, 1 failed"


def test_mistakes_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--runs", str(tmp_path / "nowhere")]) == 1
    write_run(tmp_path / "runs", study="digits_smoke")
    assert main(["digit_smoke", "--runs", str(tmp_path / "runs")]) == 1
    assert main(["--runs", str(tmp_path / "runs"), "--uri", "mlruns"]) == 1
    nowhere, unknown, store = capsys.readouterr().err.splitlines()
    assert "nowhere" in nowhere
    assert "did you mean digits_smoke?" in unknown
    assert "file store" in store


def test_an_unreachable_server_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "runs", seed=seed, epochs=3)
    start = time.monotonic()
    assert main(["--runs", str(tmp_path / "runs"), "--uri", "http://127.0.0.1:9"]) == 1
    assert time.monotonic() - start < 60
    said = lines(capsys)
    assert said[0].startswith("error: The MLflow store at http://127.0.0.1:9 cannot be used")
    assert said[1:] == [
        "demo/kd-resnet20-0a1b2c/seed0: failed: no store at http://127.0.0.1:9",
        "demo/kd-resnet20-0a1b2c/seed1: failed: no store at http://127.0.0.1:9",
        "2 runs: 0 shipped (0 rows), 0 up to date, 2 failed",
    ]


def test_the_command_prints_no_traceback(tmp_path: Path, python) -> None:
    command = (
        "import runpy, sys; sys.argv[0] = 'sync'; runpy.run_module('gda.tracking.sync', run_name='__main__')"
    )
    process = python(command, "nothing", "--runs", tmp_path)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "")
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[tuple[str, "ServerSwitch"]]:
    """A real MLflow server that is not up yet, and the switch that starts it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    switch = ServerSwitch(tmp_path / "server", port, empty_database)
    yield f"http://127.0.0.1:{port}", switch
    switch.stop()


class ServerSwitch:
    def __init__(self, folder: Path, port: int, empty_database: Path) -> None:
        self.folder, self.port, self.process = folder, port, None
        folder.mkdir()
        (folder / "mlflow.db").write_bytes(empty_database.read_bytes())

    def start(self) -> None:
        store = f"sqlite:///{self.folder}/mlflow.db"
        prepare_store(store)
        options = ["--backend-store-uri", store, "--artifacts-destination", f"{self.folder}/artifacts"]
        options += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < deadline
                assert self.process.poll() is None
                time.sleep(0.1)

    @property
    def is_down(self) -> bool:
        return self.process is None

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def check_once(client: MlflowClient, run_id: str, epochs: int) -> None:
    """Every value of the metrics is there, once."""
    for key in set(metric_row(0)) - {"epoch"}:
        history = client.get_metric_history(run_id, key)
        assert sorted(metric.step for metric in history) == list(range(epochs)), key


def test_a_server_that_comes_up_late_or_dies_midway_gets_everything(
    tmp_path: Path,
    server: tuple[str, ServerSwitch],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, switch = server
    folder = write_run(tmp_path / "runs", epochs=3, state="done")
    assert not MLflowMirror(folder, address).start().close()
    switch.start()
    assert recorded_uri(folder) == address  # so the command needs no --uri
    assert main(["demo", "--runs", str(tmp_path / "runs")]) == 0
    assert lines(capsys)[-1] == "1 run: 1 shipped (3 rows), 0 up to date, 0 failed"
    write_rows(folder, 6)
    (folder / "mlflow.json").unlink()
    assert main(["demo", "--runs", str(tmp_path / "runs"), "--uri", address]) == 0
    client = MlflowClient(address)
    (run,) = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    assert run.info.status == "FINISHED"
    check_once(client, run.info.run_id, 6)
    assert len(client.list_artifacts(run.info.run_id)) == 2
    assert (tmp_path / "server" / "artifacts").is_dir()

    # Another run of the study, of a sweep, while which the server dies between two calls.
    monkeypatch.setattr(mlflow_mirror, "_FIRST_PAUSE", 0.1)
    monkeypatch.setattr(mlflow_mirror, "_LONGEST_PAUSE", 0.5)
    monkeypatch.setattr(mlflow_run, "_METRICS_PER_BATCH", 7)
    going_on = write_run(tmp_path / "runs", seed=1, epochs=4)
    facts = going_on / "run.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"sweep": "demo/2024-05-06_07-08-09"}))
    real, calls = MlflowClient.log_batch, 0

    def dies_midway(*arguments: object, **more: object) -> None:
        nonlocal calls
        real(*arguments, **more)
        calls += 1
        if calls == 6:  # some values of the second lot are there, others are not
            switch.stop()

    monkeypatch.setattr(MlflowClient, "log_batch", dies_midway)
    mirror = MLflowMirror(going_on, address).start()
    wait_until(lambda: calls >= 5)
    write_rows(going_on, 8)
    mirror.notify()
    wait_until(lambda: calls >= 6 and switch.is_down)
    write_rows(going_on, 11)  # training does not wait
    mirror.notify()
    switch.start()
    write_status(going_on, "done", 10)
    assert mirror.close(60)
    check_once(client, mirror.run_id, 11)
    (parent,) = client.search_runs([run.info.experiment_id], "tags.kind = 'sweep'")
    shipped = client.get_run(mirror.run_id)
    assert shipped.info.status == "FINISHED"
    assert shipped.data.tags["mlflow.parentRunId"] == parent.info.run_id
