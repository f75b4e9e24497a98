import json
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from run_folders import metric_row, timing_row, write_rows, write_run, write_status

from gda.errors import UserError
from gda.tracking import mlflow_mirror
from gda.tracking.mlflow_ledger import LEDGER_NAME, recorded_uri
from gda.tracking.mlflow_mirror import MLflowMirror
from gda.tracking.mlflow_ship import ship
from gda.tracking.mlflow_store import default_uri
from gda.tracking.run_folder import RunFolder

DEAD = "http://127.0.0.1:9"  # the discard port: nobody listens

# Ships in small batches, and is killed just after MLflow took one of them.
KILLED = """
import os, signal, sys
from pathlib import Path
from gda.tracking import mlflow_run, mlflow_ship
from mlflow import MlflowClient
folder, uri, calls = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
mlflow_run._METRICS_PER_BATCH = 7
real = MlflowClient.log_batch
def log_batch(*args, **kwargs):
    global calls
    real(*args, **kwargs)
    calls -= 1
    if calls == 0:
        os.kill(os.getpid(), signal.SIGKILL)
MlflowClient.log_batch = log_batch
mlflow_ship.ship(folder, uri)
"""


def runs_of(uri: str, experiment: str = "demo") -> list[Run]:
    client = MlflowClient(uri)
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def check_history(uri: str, run_id: str, epochs: int) -> None:
    """Every value of the journals is in MLflow, once, at its epoch."""
    client = MlflowClient(uri)
    for row_of, prefix in ((metric_row, ""), (timing_row, "timing/")):
        for key in set(row_of(0)) - {"epoch"}:
            history = client.get_metric_history(run_id, prefix + key)
            assert sorted(metric.step for metric in history) == list(range(epochs)), key
            for metric in history:
                expected = float(row_of(metric.step)[key])
                assert metric.value == expected or (math.isnan(metric.value) and math.isnan(expected))


def write_with(folder: Path, epochs: range, shift: float) -> None:
    """Writes journals whose losses differ from the usual ones."""
    rows = [{**metric_row(epoch), "train/loss": epoch + shift} for epoch in epochs]
    for name, lines in (("metrics", rows), ("timing", [timing_row(epoch) for epoch in epochs])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ledger_rows(folder: Path) -> int:
    path = folder / LEDGER_NAME
    return json.loads(path.read_text())["rows"] if path.exists() else 0


def test_a_finished_run_is_mirrored_whole(tmp_path: Path, uri: str) -> None:
    folder = write_run(tmp_path / "runs", epochs=8, state="done")
    shipment = ship(folder, uri)
    assert (shipment.rows, shipment.changed) == (8, True)
    (run,) = runs_of(uri)
    assert run.info.run_id == shipment.run_id
    check_history(uri, run.info.run_id, 8)

    assert run.info.status == "FINISHED"
    assert run.info.start_time == 1714979289000
    assert run.info.end_time == int(1000 * (folder / "status.json").stat().st_mtime)
    assert run.info.run_name == "kd-resnet20-0a1b2c/seed0"
    history = MlflowClient(uri).get_metric_history(run.info.run_id, "lr")
    assert [m.timestamp for m in history] == [1714979289000 + 1501 * n + 1500 for n in range(8)]

    assert run.data.metrics["result/last/test_top1"] == 17.0
    assert run.data.metrics["result/best/test_top1"] == 90.5
    assert run.data.metrics["result/test_top1_oracle"] == 91.0
    assert run.data.params["recipe.lr"] == "0.05"
    assert run.data.params["recipe.milestones"] == "[3, 5]"
    assert run.data.params["recipe.warmup"] == "null"
    assert run.data.params["distiller.terms.kd.temperature"] == "4.0"
    assert run.data.params["note"] == "x" * 6000
    assert len(run.data.params) == 11
    assert run.data.tags["gda.run"] == "demo/kd-resnet20-0a1b2c/seed0:f00d0"
    assert run.data.tags["git.commit"] == "c0ffee"
    tags = {"study": "demo", "group": "0a1b2c", "seed": "0", "ground_truth": "labels", "label": "KD"}
    assert tags.items() <= run.data.tags.items()
    assert "teacher" not in run.data.tags

    names = [file.path for file in MlflowClient(uri).list_artifacts(run.info.run_id)]
    assert names == ["config.yaml", "run.json"]
    stored = tmp_path / "runs" / "mlflow-artifacts" / "demo" / run.info.run_id / "artifacts" / "run.json"
    assert stored.read_bytes() == (folder / "run.json").read_bytes()

    again = ship(folder, uri, verify=True)
    assert (again.run_id, again.rows, again.changed) == (run.info.run_id, 0, False)
    for name in ("report.md", "code.diff"):
        (folder / name).write_text("late\n")
        assert ship(folder, uri).changed
    assert len(MlflowClient(uri).list_artifacts(run.info.run_id)) == 4
    check_history(uri, run.info.run_id, 8)


@pytest.mark.parametrize(("state", "status"), [("failed", "FAILED"), ("interrupted", "KILLED")])
def test_a_run_that_stopped_goes_on_in_the_same_mlflow_run(
    tmp_path: Path, uri: str, state: str, status: str
) -> None:
    folder = write_run(tmp_path / "runs", epochs=5, state=state)
    ship(folder, uri)
    assert runs_of(uri)[0].info.status == status
    write_rows(folder, 3)  # back to the last checkpoint
    write_status(folder, "running", 3)
    assert ship(folder, uri).rows == 0
    assert runs_of(uri)[0].info.status == "RUNNING"
    write_rows(folder, 9)
    write_status(folder, "done", 8)
    assert ship(folder, uri).rows == 4
    (run,) = runs_of(uri)
    assert run.info.status == "FINISHED"
    check_history(uri, run.info.run_id, 9)


def test_a_preempted_run_waits_for_its_turn(tmp_path: Path, uri: str) -> None:
    folder = write_run(tmp_path / "runs", epochs=3, state="preempted")
    ship(folder, uri)
    (run,) = runs_of(uri)
    assert run.info.status == "SCHEDULED"
    assert run.info.end_time is None
    check_history(uri, run.info.run_id, 3)
    write_status(folder, "running", 3)
    ship(folder, uri)
    assert runs_of(uri)[0].info.status == "RUNNING"


@pytest.mark.parametrize("shipped_meanwhile", [True, False])
def test_epochs_that_are_done_again_alike_are_there_once(
    tmp_path: Path, uri: str, shipped_meanwhile: bool
) -> None:
    """A requeued run goes back to its last good checkpoint, and writes its journal anew from that."""
    folder = write_run(tmp_path / "runs", epochs=6)
    run_id = ship(folder, uri).run_id
    run = RunFolder(folder)
    run.restore_history([metric_row(epoch) for epoch in range(4)])
    for epoch in range(4, 9):
        if shipped_meanwhile:
            assert ship(folder, uri).run_id == run_id
        run.append(metric_row(epoch), timing_row(epoch))
    assert ship(folder, uri, verify=True).run_id == run_id
    check_history(uri, run_id, 9)


@pytest.mark.parametrize("shipped_meanwhile", [True, False])
def test_epochs_that_come_out_differently_replace_the_old_ones(
    tmp_path: Path, uri: str, shipped_meanwhile: bool
) -> None:
    """As on a GPU, whose sums have no order: MLflow keeps both values of a step, so the run is made anew."""
    folder = write_run(tmp_path / "runs", epochs=0)
    write_with(folder, range(6), shift=0.25)
    old = ship(folder, uri).run_id
    run = RunFolder(folder)
    run.restore_history([metric_row(epoch) for epoch in range(4)])
    for epoch in range(4, 9):
        if shipped_meanwhile:
            ship(folder, uri)
        run.append(metric_row(epoch), timing_row(epoch))
    write_status(folder, "done", 8)
    new = ship(folder, uri).run_id
    assert new != old
    assert [found.info.run_id for found in runs_of(uri)] == [new]
    check_history(uri, new, 9)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("demo").experiment_id
    (trash,) = client.search_runs([experiment], run_view_type=ViewType.DELETED_ONLY)
    assert trash.info.run_id == old
    assert not ship(folder, uri, verify=True).changed
    write_with(folder, range(9), shift=0.5)  # as many rows, and nothing else is new
    assert ship(folder, uri).run_id != new


def test_a_shorter_journal_of_a_finished_run_replaces_a_longer_one(tmp_path: Path, uri: str) -> None:
    folder = write_run(tmp_path / "runs", epochs=6)
    old = ship(folder, uri).run_id
    write_rows(folder, 4)
    assert ship(folder, uri).run_id == old  # it may still come as far
    write_status(folder, "done", 3)
    new = ship(folder, uri).run_id
    assert new != old
    check_history(uri, new, 4)


def test_values_that_were_in_flight_when_their_sender_died_are_not_mixed_with_others(
    tmp_path: Path, uri: str, python
) -> None:
    folder = write_run(tmp_path / "runs", epochs=0)
    write_with(folder, range(8), shift=0.25)
    process = python(KILLED, folder, uri, 2)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    write_rows(folder, 8)
    write_status(folder, "done", 7)
    check_history(uri, ship(folder, uri).run_id, 8)
    assert len(runs_of(uri)) == 1


def test_rows_that_are_being_written_wait(tmp_path: Path, uri: str) -> None:
    folder = write_run(tmp_path / "runs", epochs=2)
    with (folder / "timing.jsonl").open("a") as timing, (folder / "metrics.jsonl").open("a") as metrics:
        timing.write(json.dumps(timing_row(2)) + "\n")
        metrics.write(json.dumps(metric_row(2))[:-4])
    assert ship(folder, uri).rows == 2
    check_history(uri, runs_of(uri)[0].info.run_id, 2)


def test_odd_journals(tmp_path: Path, uri: str) -> None:
    folder = write_run(tmp_path / "runs", epochs=0)
    (folder / "run.json").write_text("{}")
    (folder / "config.yaml").write_text("{}\n")
    many = {f"class/{n}": float(n) for n in range(2500)}  # more than MLflow takes in one call
    rows = [
        {"epoch": 0, "loss(kd)": 1, "name": "text", "flag": True, "none": None, **many},
        {"epoch": 1, "loss(kd)": "inf"},
        {"epoch": 1, "loss(kd)": 2},
        {"no epoch": 1.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ship(folder, uri)
    (run,) = runs_of(uri)
    assert set(run.data.metrics) == {"loss_kd_", *many}
    history = MlflowClient(uri).get_metric_history(run.info.run_id, "loss_kd_")
    assert [(m.step, m.value) for m in history] == [(0, 1), (1, 2)]


@pytest.mark.parametrize("calls", [3, 6])
def test_kill_9_while_shipping_loses_and_doubles_nothing(
    tmp_path: Path, uri: str, python, calls: int
) -> None:
    folder = write_run(tmp_path / "runs", epochs=8, state="done")
    process = python(KILLED, folder, uri, calls)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    assert json.loads((folder / LEDGER_NAME).read_text())["in_flight"]
    assert runs_of(uri)[0].data.metrics
    assert ship(folder, uri).rows == 8
    (run,) = runs_of(uri)
    check_history(uri, run.info.run_id, 8)


def test_a_lost_ledger_finds_its_run_again(tmp_path: Path, uri: str) -> None:
    folder = write_run(tmp_path / "runs", epochs=4, state="done")
    run_id = ship(folder, uri).run_id
    (folder / LEDGER_NAME).unlink()
    assert ship(folder, uri).run_id == run_id
    assert len(runs_of(uri)) == 1
    check_history(uri, run_id, 4)
    client = MlflowClient(uri)
    assert len(client.get_metric_history(run_id, "result/test_top1_oracle")) == 1


def test_a_run_deleted_in_mlflow_is_made_again(tmp_path: Path, uri: str) -> None:
    folder = write_run(tmp_path / "runs", epochs=4, state="done")
    client = MlflowClient(uri)
    old = ship(folder, uri).run_id
    client.delete_run(old)
    assert ship(folder, uri).run_id == old  # nothing new, so nobody asks
    new = ship(folder, uri, verify=True).run_id
    assert new != old
    check_history(uri, new, 4)
    client.delete_experiment(client.get_experiment_by_name("demo").experiment_id)
    with pytest.raises(UserError, match="trash"):
        ship(folder, uri, verify=True)


def test_a_namesake_is_another_run(tmp_path: Path, uri: str) -> None:
    folder = write_run(tmp_path / "runs", epochs=4)
    old = ship(folder, uri).run_id
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"id": "another"}))
    new = ship(folder, uri).run_id
    assert new != old
    check_history(uri, new, 4)


def test_a_folder_without_a_run_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError, match=r"run\.json"):
        ship(tmp_path, uri)


def test_the_mirror_ships_while_the_run_goes_on(
    tmp_path: Path, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_run(tmp_path / "runs", epochs=0)
    mirror = MLflowMirror(folder, uri).start()
    for epochs in (1, 2, 5):
        write_rows(folder, epochs)
        mirror.notify()
        wait_until(lambda epochs=epochs: ledger_rows(folder) == epochs)
    assert runs_of(uri)[0].info.status == "RUNNING"
    write_rows(folder, 7)  # the last ones without a word: close ships them
    write_status(folder, "done", 6)
    assert mirror.close()
    (run,) = runs_of(uri)
    assert mirror.run_id == run.info.run_id
    assert run.info.status == "FINISHED"
    check_history(uri, run.info.run_id, 7)
    assert not [record for record in caplog.records if record.name == "gda.tracking"]


def test_several_shippers_of_one_run(tmp_path: Path, uri: str) -> None:
    folder = write_run(tmp_path / "runs", epochs=0)
    mirrors = [MLflowMirror(folder, uri).start() for _ in range(4)]
    for epochs in range(1, 11):
        write_rows(folder, epochs)
        for mirror in mirrors:
            mirror.notify()
    write_status(folder, "done", 9)
    assert all(mirror.close(60) for mirror in mirrors)
    (run,) = runs_of(uri)
    check_history(uri, run.info.run_id, 10)


def test_a_dead_server_costs_one_warning_and_sync_ships_later(
    tmp_path: Path, uri: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_mirror, "_FIRST_PAUSE", 0.01)
    folder = write_run(tmp_path / "runs", epochs=0)
    mirror = MLflowMirror(folder, DEAD, experiment="chosen").start()
    for epochs in range(1, 5):
        write_rows(folder, epochs)
        mirror.notify()
        time.sleep(0.05)
    write_status(folder, "done", 3)
    assert not mirror.close()
    assert mirror.run_id is None
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    ours = [record.getMessage() for record in warnings if record.name == "gda.tracking"]
    assert len(ours) == 1
    assert DEAD in ours[0]
    assert "python -m gda.tracking.sync demo" in ours[0]
    assert "\n" not in ours[0]
    assert recorded_uri(folder) == DEAD
    assert ship(folder, uri).rows == 4
    assert recorded_uri(folder) == uri
    check_history(uri, runs_of(uri, "chosen")[0].info.run_id, 4)


def test_a_server_that_never_answers_blocks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    folder = write_run(tmp_path / "runs", epochs=2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mirror = MLflowMirror(folder, f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        mirror.start()
        mirror.notify()
        assert time.monotonic() - start < 2
        assert not mirror.close(timeout_seconds=1)
        assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("state", "uri", "patience"),
    [
        ("preempted", DEAD, 0.1),  # its job must still ask to be requeued
        ("interrupted", DEAD, 0.1),
        ("done", DEAD, 0.2),
        ("failed", DEAD, 0.2),
        ("preempted", "sqlite:////nowhere/mlflow.db", 0.1),
        ("done", "sqlite:////nowhere/mlflow.db", 0.3),
    ],
)
def test_how_long_a_run_waits_at_its_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    state: str,
    uri: str,
    patience: float,
) -> None:
    for name, seconds in (("SIGNAL", 0.1), ("SERVER", 0.2), ("DATABASE", 0.3)):
        monkeypatch.setattr(mlflow_mirror, f"_{name}_PATIENCE", seconds)
    folder = write_run(tmp_path / "runs", epochs=2, state=state)
    hangs = threading.Event()
    monkeypatch.setattr(mlflow_mirror, "ship", lambda *_: hangs.wait(60))
    assert not MLflowMirror(folder, uri).start().close()
    hangs.set()
    assert f"no answer within {patience} s" in caplog.text


def test_a_mirror_recovers_by_itself(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each second call fails, half of them after the store has taken the values."""
    monkeypatch.setattr(mlflow_mirror, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(mlflow_mirror, "_LONGEST_PAUSE", 0.05)
    real = MlflowClient.log_batch
    calls = 0

    def flaky(*args: object, **kwargs: object) -> None:
        nonlocal calls
        calls += 1
        if calls % 4 == 1:
            raise ConnectionError("lost on the way there")
        real(*args, **kwargs)
        if calls % 4 == 3:
            raise ConnectionError("lost on the way back")

    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    folder = write_run(tmp_path / "runs", epochs=0)
    mirror = MLflowMirror(folder, uri).start()
    for epochs in range(1, 13):
        write_rows(folder, epochs)
        mirror.notify()
        wait_until(lambda epochs=epochs: ledger_rows(folder) == epochs)
    write_status(folder, "done", 11)
    assert mirror.close()
    assert calls > 12
    (run,) = runs_of(uri)
    check_history(uri, run.info.run_id, 12)


def test_a_mirror_makes_its_store(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", epochs=2, state="done")
    mirror = MLflowMirror(folder, default_uri(tmp_path / "runs")).start()
    assert mirror.close(60)
    check_history(default_uri(tmp_path / "runs"), mirror.run_id, 2)


def test_a_mirror_that_was_never_started_closes(tmp_path: Path) -> None:
    assert not MLflowMirror(tmp_path, DEAD).close()
