"""MLflow stores on SQLite, and processes that may be killed."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gda.tracking.mlflow_store import default_uri, prepare_store

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build MLflow's tables once a session, in a file that exists already: it takes seconds."""
    root = tmp_path_factory.mktemp("mlflow")
    (root / "mlflow.db").touch()
    prepare_store(default_uri(root))
    return root / "mlflow.db"


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    """Name a store of the test's own, where the runs are."""
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_database, tmp_path / "runs" / "mlflow.db")
    return default_uri(tmp_path / "runs")


@pytest.fixture
def python() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start Python processes, which are killed at the end of the test if they still run."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, *arguments: object) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
