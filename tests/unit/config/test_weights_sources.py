"""Everything that ``teacher.checkpoint`` may name, through real runs."""

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gda.app import finish
from gda.config.check import check
from gda.config.faults import ConfigFaults
from gda.config.inputs import weights_identity
from gda.models import create_model
from gda.models.weights.checkpoints import file_hash
from gda.tracking.run_folder import RunFolder

Compose = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def trained(tiny: Compose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished teacher with a moving average."""
    runs = tmp_path_factory.mktemp("trained")
    config = tiny(
        "distiller=vanilla", "alignment=none", "teacher=none", "trainer.ema_decay=0.9", f"runs={runs}"
    )
    return finish(config).folder


@pytest.fixture
def student(tiny: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Composes a student of a teacher whose weights a test names; fetched files go to a fresh cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))

    def composed(checkpoint: str, **teacher: Any) -> dict[str, Any]:
        config = tiny("distiller=kd", "alignment=none", f"runs={tmp_path / 'runs'}")
        config["recipe"]["epochs"] = 1
        config["teacher"] |= {"checkpoint": checkpoint, **teacher}
        return config

    return composed


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address that an HTTP server on this machine gives it."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def teacher_accuracy(folder: Path) -> float:
    """Test accuracy of the teacher, as a student's run measured it."""
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    return float(first["teacher_test_top1"])


def accuracies(folder: Path) -> dict[str, float]:
    """Test accuracy of a run's last epoch, raw and averaged."""
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {"raw": last["test_top1"], "ema": last["ema_test_top1"]}


def test_a_run_folder(trained: Path, student: Compose) -> None:
    config = student(str(trained))
    assert check(config) == []
    assert weights_identity(config) == f"sha256:{file_hash(trained / 'last.pt')}"
    assert teacher_accuracy(finish(config).folder) == accuracies(trained)["raw"]
    (fault,) = check(student(str(trained.parent)))
    assert "is a folder, but not of a run" in fault.what
    assert str(trained) in fault.what, "the runs below it are named"
    (fault,) = check(student(f"{trained}s/last.pt"))
    assert f"has no '{trained.name}s'; did you mean '{trained.name}'?" in fault.what
    best = student(str(trained), checkpoint_select="best")
    assert weights_identity(best) == f"sha256:{file_hash(trained / 'best.pt')}"


def test_a_path_from_the_home_folder(
    trained: Path, student: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(trained.parent))
    assert weights_identity(student(f"~/{trained.name}")) == weights_identity(student(str(trained)))


def test_the_moving_average(trained: Path, student: Compose, tmp_path: Path) -> None:
    raw, averaged = student(str(trained)), student(str(trained), weights="ema")
    figures = accuracies(trained)
    assert figures["raw"] != figures["ema"]
    assert weights_identity(averaged) == f"{weights_identity(raw)}:ema"
    assert teacher_accuracy(finish(averaged).folder) == figures["ema"]
    (fault,) = check(student("auto", weights="ema"))
    assert fault.where == "teacher.weights"
    torch.save({"model": create_model("resnet8", 10).state_dict()}, tmp_path / "raw.pth")
    (fault,) = check(student(str(tmp_path / "raw.pth"), weights="ema"))
    assert (fault.where, fault.fix) == ("teacher.weights", "teacher.weights=raw")


def test_an_address_is_fetched_once_the_config_is_without_faults(
    trained: Path, student: Compose, served: tuple[Path, str]
) -> None:
    folder, address = served
    shutil.copy(trained / "last.pt", folder / "teacher.pt")
    config = student(f"{address}/teacher.pt")
    assert check(config) == []
    assert teacher_accuracy(finish(config).folder) == accuracies(trained)["raw"]
    assert weights_identity(config) == f"sha256:{file_hash(trained / 'last.pt')}"
    (folder / "teacher.pt").unlink()
    assert check(config) == []  # it is at hand now
    with pytest.raises(ConfigFaults, match="404"):
        finish(student(f"{address}/nothing.pt"))
    torch.save({"model": {"fc.weight": torch.zeros(3, 3)}}, folder / "other.pt")
    with pytest.raises(ConfigFaults, match="do not fit resnet8"):
        finish(student(f"{address}/other.pt"))


def test_an_address_that_can_not_be_reached_or_read(student: Compose) -> None:
    with pytest.raises(ConfigFaults, match="can't be fetched"):
        finish(student("http://127.0.0.1:9/teacher.pt"))
    (fault,) = check(student("ftp://somewhere/teacher.pt"))
    assert fault.where == "teacher.checkpoint"
    assert "no address" in fault.what


def test_the_hash_is_held_against_the_file(trained: Path, student: Compose) -> None:
    right = file_hash(trained / "last.pt")
    assert check(student(str(trained), sha256=right)) == []
    (fault,) = check(student(str(trained), sha256="0" * 64))
    assert right in fault.what
    for checkpoint in (str(trained), "http://127.0.0.1:9/teacher.pt"):
        (fault,) = check(student(checkpoint, sha256="abc"))
        assert fault.where == "teacher.sha256"
        assert "64 hexadecimal digits" in fault.what
    (fault,) = check(student("auto", sha256=right))
    assert fault.where == "teacher.sha256"


def test_an_address_whose_file_was_replaced_is_fetched_again_for_its_new_hash(
    trained: Path, student: Compose, served: tuple[Path, str]
) -> None:
    folder, address = served
    (folder / "teacher.pt").write_bytes(b"cut off")
    with pytest.raises(
        ConfigFaults, match=r"can't be read safely: .* Try: fetch it again: rm .*-teacher\.pt"
    ):
        finish(student(f"{address}/teacher.pt"))
    shutil.copy(trained / "last.pt", folder / "teacher.pt")
    config = student(f"{address}/teacher.pt", sha256=file_hash(trained / "last.pt"))
    assert teacher_accuracy(finish(config).folder) == accuracies(trained)["raw"]


def test_a_timm_teacher_without_weights_is_one_fault(student: Compose) -> None:
    (fault,) = check(
        student(
            None,
            _target_="gda.models.create_timm_model",
            name="resnet18",
            pretrained=False,  # type: ignore[arg-type]
        )
    )
    assert "would teach noise" in fault.what


def test_an_mlflow_run(tiny: Compose, student: Compose, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from gda.tracking.mlflow_store import default_uri

    runs = tmp_path / "runs"
    run = finish(
        tiny("distiller=vanilla", "alignment=none", "teacher=none", "tracking=mlflow", f"runs={runs}")
    ).folder
    client = MlflowClient(default_uri(runs))
    (mirrored,) = client.search_runs([client.get_experiment_by_name("main").experiment_id])
    config = student(f"mlflow:{mirrored.info.run_id}")
    assert check(config) == []
    with pytest.raises(ConfigFaults, match="has no run"):
        finish(student("mlflow:" + "0" * 32))
    assert (
        teacher_accuracy(finish(config).folder)
        == json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["test_top1"]
    )
    assert weights_identity(config) == f"sha256:{file_hash(run / 'last.pt')}"
    (fault,) = check(student("mlflow:not an id"))
    assert "no MLflow run id" in fault.what

    foreign = client.create_run("0")
    client.log_artifact(foreign.info.run_id, str(run / "last.pt"), "checkpoints")
    from_artifacts = student(f"mlflow:{foreign.info.run_id}")
    assert finish(from_artifacts).folder == finish(config).folder
    assert RunFolder(finish(config).folder).is_done()

    client.log_artifact(foreign.info.run_id, str(run / "best.pt"), "checkpoints")
    best = student(f"mlflow:{foreign.info.run_id}", checkpoint_select="best")
    finish(best)
    assert weights_identity(best) == f"sha256:{file_hash(run / 'best.pt')}", "not what last has left"


def test_looking_for_an_mlflow_run_makes_no_store(student: Compose, tmp_path: Path) -> None:
    with pytest.raises(ConfigFaults, match="no MLflow store"):
        finish(student("mlflow:" + "0" * 32))
    assert not list((tmp_path / "runs").glob("mlflow.db*"))
