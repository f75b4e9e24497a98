import sqlite3
from pathlib import Path

import pytest

from gda.errors import UserError
from gda.tracking.mlflow_store import (
    absolute_uri,
    artifact_location,
    check_store,
    clean_name,
    default_uri,
    open_client,
    prepare_store,
)

PREPARE = """
import sys, time
from pathlib import Path
from gda.tracking.mlflow_store import prepare_store
uri, go = sys.argv[1], Path(sys.argv[2])
print("ready", flush=True)
while not go.exists():
    time.sleep(0.001)
prepare_store(uri)
print("mlflow" in sys.modules)
"""


def test_uris_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert default_uri("runs") == expected
    assert absolute_uri("sqlite:///runs/mlflow.db") == expected
    assert absolute_uri(expected) == expected
    assert absolute_uri("http://localhost:5000") == "http://localhost:5000"
    assert artifact_location(expected, "demo") == f"file://{tmp_path}/runs/mlflow-artifacts/demo"
    assert artifact_location("http://localhost:5000", "demo") is None


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "sqlite://", "sqlite:///:memory:"])
def test_unsafe_stores_are_refused(uri: str) -> None:
    with pytest.raises(UserError, match="sqlite:///"):
        absolute_uri(uri)


def test_four_processes_make_one_store_together(tmp_path: Path, python) -> None:
    uri = default_uri(tmp_path / "deep" / "runs")
    processes = [python(PREPARE, uri, tmp_path / "go") for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    imported = []
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert not errors
        imported.append(output.strip())
    assert sorted(imported) == ["False", "False", "False", "True"]  # one built it, and only one
    files = {file.name: file for file in (tmp_path / "deep" / "runs").iterdir()}
    assert set(files) == {"mlflow.db", "mlflow.db.lock"}
    client = open_client(uri)
    assert [experiment.name for experiment in client.search_experiments()] == ["Default"]
    before = files["mlflow.db"].stat().st_mtime_ns
    prepare_store(uri)
    assert files["mlflow.db"].stat().st_mtime_ns == before


def test_a_database_that_was_left_empty_is_filled(empty_database: Path) -> None:
    check_store(default_uri(empty_database.parent))  # the fixture began with a file of no bytes


def test_servers_are_left_alone_and_places_are_checked(tmp_path: Path) -> None:
    prepare_store("http://127.0.0.1:9")
    with pytest.raises(UserError, match="relative"):
        prepare_store("sqlite:///mlflow.db")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        prepare_store(default_uri(tmp_path / "file"))


def test_what_is_not_a_store_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9"):
        check_store("http://127.0.0.1:9")
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("create table alembic_version (version_num text)")
        connection.execute("insert into alembic_version values ('of another age')")
    with pytest.raises(UserError, match="cannot be used"):
        check_store(default_uri(tmp_path))


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("test/top1", "test/top1"),
        ("gda: fisher-rao_0.9", "gda: fisher-rao_0.9"),
        ("loss(kd)@4%", "loss_kd__4_"),
        ("/a//b/", "a/b"),
        ("../a/.", "__/a/_"),
        ("", "_"),
    ],
)
def test_names_that_mlflow_takes(name: str, clean: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    assert clean_name(name) == clean
    _validate_metric_name(clean)


def test_long_names_stay_different() -> None:
    names = {clean_name("a" * 300 + end) for end in "xyz"}
    assert len(names) == 3
    assert max(map(len, names)) == 250
