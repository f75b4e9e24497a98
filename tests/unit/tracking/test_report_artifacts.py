import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from run_folders import write_run

from gda.errors import UserError
from gda.tracking.mlflow_ledger import LEDGER_NAME
from gda.tracking.mlflow_ship import ship
from gda.tracking.report_artifacts import log_report

DEAD = "http://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study with a finished run that the report can read."""
    folder = write_run(tmp_path / "runs", epochs=3, state="done")
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"format": 1}))
    return folder.parents[1]


def report(study: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gda.report", study.name, "--runs", str(study.parent)],
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_a_mirrored_study_gets_its_report_into_one_run(uri: str, study: Path) -> None:
    ship(next(study.glob("*/seed0")), uri, experiment="chosen")
    done = report(study)
    assert (done.returncode, done.stderr) == (0, "")
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("chosen").experiment_id
    (run,) = client.search_runs([experiment], filter_string="tags.kind = 'report'")
    assert (run.info.run_name, run.info.status) == ("report demo", "FINISHED")
    assert run.data.tags["study"] == "demo"
    logged = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert logged == {file.name for file in (study / "report").iterdir()}
    assert {"report.md", "table.csv", "runs.csv"} <= logged

    page = study / "report" / "report.md"
    page.write_text("# newer\n")
    assert log_report(study, [page]) == run.info.run_id  # written again: the same run
    stored = study.parent / "mlflow-artifacts" / "chosen" / run.info.run_id / "artifacts" / "report.md"
    assert stored.read_text() == "# newer\n"


def test_a_study_that_was_not_mirrored_does_without_mlflow(study: Path, python) -> None:
    script = (
        "import sys; from pathlib import Path; from gda.tracking.report_artifacts import log_report\n"
        "print(log_report(Path(sys.argv[1]), []), 'mlflow' in sys.modules)"
    )
    output, errors = python(script, study).communicate(timeout=60)
    assert output == "None False\n", errors


def test_an_unreachable_server_is_one_line_and_no_failure(study: Path) -> None:
    ledger = next(study.glob("*/seed0")) / LEDGER_NAME
    ledger.write_text(json.dumps({"uri": DEAD, "experiment": "demo"}))
    start = time.monotonic()
    done = report(study)
    assert time.monotonic() - start < 60
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].endswith("report.md")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"warning: The report is not in MLflow, which cannot be used at {DEAD}: ")


def test_most_runs_decide_and_a_lost_database_is_not_made(study: Path, tmp_path: Path) -> None:
    ledger = next(study.glob("*/seed0")) / LEDGER_NAME
    lost = tmp_path / "elsewhere" / "mlflow.db"
    for seed, uri in enumerate((DEAD, f"sqlite:///{lost}", f"sqlite:///{lost}")):
        path = ledger.parents[1] / f"seed{seed}" / LEDGER_NAME
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"uri": uri, "experiment": "demo"}))
    with pytest.raises(UserError, match=f"there is no file {lost}"):
        log_report(study, [])
    assert not lost.parent.exists()
    shutil.rmtree(study)
    assert log_report(study, []) is None
