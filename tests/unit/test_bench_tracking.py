from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from gda.bench import tracking
from gda.bench.__main__ import main
from gda.tracking.mlflow_ledger import recorded
from gda.tracking.mlflow_store import default_uri


def test_runs_that_log_at_once_lose_nothing(tmp_path: Path) -> None:
    """A small version of what ``python -m gda.bench tracking`` measures; then what it would say of losses."""
    runs = tmp_path / "runs"
    shipped = tracking.measure(processes=4, epochs=30, metrics=20, runs=runs)
    assert shipped.written == 4 * 30 * 24
    assert (shipped.found, shipped.lost, shipped.wrong, shipped.twice) == (shipped.written, 0, 0, 0)
    assert (shipped.parents, shipped.left_behind) == (1, 0)
    assert 0 < shipped.slowest_close <= shipped.seconds

    uri = default_uri(runs)
    folders = [runs / tracking.STUDY / "run-000000" / f"seed{seed}" for seed in range(6)]
    client, run_id = MlflowClient(uri), recorded(folders[0])["run_id"]
    client.log_batch(run_id, [Metric("metric_3", 1.0, 1, 5), Metric("metric_4", 2.0, 2, 40)])
    ends = [(True, 0.5), (True, 1.5), (False, 2.5), (True, 0.5), (True, 0.5), (True, 0.5)]
    found = tracking._read_back(uri, folders, 31, 20, ends, 9.0)
    assert found.written == 6 * 31 * 24
    assert found.lost == 2 * 31 * 24 + 4 * 24  # of two runs that are not there, and an epoch of the others
    assert found.twice == 1
    assert (found.parents, found.left_behind, found.slowest_close) == (1, 1, 2.5)


def test_a_process_that_fails_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / tracking.STUDY / "run-000000").mkdir(parents=True)
    (tmp_path / tracking.STUDY / "run-000000" / "seed0").touch()
    with pytest.raises(RuntimeError, match="has failed"):
        tracking.measure(processes=1, epochs=1, metrics=1, runs=tmp_path)
    assert "seed0" in capfd.readouterr().err


def test_the_command_prints_what_arrived(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def measure(processes: int, uri: str | None) -> tracking.Shipped:
        asked.append((processes, uri))
        return tracking.Shipped(processes, 1000, 990, 3, 2, 1, 1, 4.0, 3.5)

    monkeypatch.setattr(tracking, "measure", measure)
    assert main(["tracking", "--processes", "5", "--uri", "http://host:5000"]) == 0
    assert asked == [(5, "http://host:5000")]
    lines = [" ".join(line.strip("│ ").split()) for line in capsys.readouterr().out.splitlines()]
    for line in ("values written │ 1,000", "lost │ 7", "wrong │ 3", "twice │ 2", "runs left behind │ 1"):
        assert line in lines
