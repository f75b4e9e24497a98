"""What the export refuses, in which words, and that it writes nothing then."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gda.errors import UserError
from gda.interchange import formats
from gda.interchange.export_student import main
from gda.models import load_exported


def status(folder: Path, **changes: Any) -> None:
    path = folder / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without_average(folder: Path) -> None:
    state = torch.load(folder / "last.pt", weights_only=True)
    torch.save({**state, "model_ema": None}, folder / "last.pt")


def truncated(folder: Path) -> None:
    data = (folder / "last.pt").read_bytes()
    (folder / "last.pt").write_bytes(data[: len(data) // 2])


def of_another_model(folder: Path) -> None:
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("name: resnet8\n", "name: resnet20\n"))


@pytest.mark.parametrize(
    ("spoil", "arguments", "says"),
    [
        (
            lambda run: status(run, state="running", epoch=1),
            [],
            r"is running at epoch 1 of 2; only a finished",
        ),
        (
            lambda run: status(run, state="failed", error="Boom: x"),
            [],
            r"is failed at epoch 2 of 2 \(Boom: x\)",
        ),
        (lambda run: status(run, state="interrupted"), [], "The command that began it continues it"),
        (lambda run: (run / "status.json").unlink(), [], "is not finished"),
        (lambda run: (run / "best.pt").unlink(), ["--select", "best"], "no best.pt: .*Take --select last"),
        (lambda run: (run / "last.pt").unlink(), [], "holds no last.pt: it was removed"),
        (without_average, ["--weights", "ema"], "no moving average: .*Take --weights raw"),
        (truncated, [], "truncated or damaged"),
        (of_another_model, [], "does not fit the model that its config.yaml names now"),
        (lambda run: (run / "config.yaml").write_text("]["), [], "config.yaml can't be read"),
        (lambda run: None, ["--formats", "onx"], "no format 'onx'; did you mean 'onnx'"),
        (lambda run: None, ["--formats", ","], "names no format; there are: onnx, safetensors, torch_export"),
    ],
)
def test_what_can_not_be_exported_is_refused_in_words_and_nothing_is_written(
    copied: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    arguments: list[str],
    says: str,
) -> None:
    spoil(copied)
    before = {path.name for path in copied.iterdir()}
    assert main([str(copied), *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    with pytest.raises(UserError, match=says):
        raise UserError(printed.err)
    assert {path.name for path in copied.iterdir()} == before


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "It holds runs; name one: .*seed0"),
        ("seed1", "has no 'seed1'; did you mean 'seed0'"),
        ("seed0/export", "Did you mean .*seed0\\?"),
        ("other", "Name the folder of one run, e.g. runs/STUDY"),
    ],
)
def test_a_path_that_is_no_run_names_runs_near_it(
    copied: Path, capsys: pytest.CaptureFixture[str], path: str, says: str
) -> None:
    (copied / "export").mkdir()
    (copied.parent / "other").mkdir()
    assert main([str(copied.parent / path)]) == 1
    with pytest.raises(UserError, match=says):
        raise UserError(capsys.readouterr().err)


def test_missing_packages_are_named_with_the_command_that_installs_them(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    assert main([str(copied)]) == 1
    needs = "The format onnx needs onnx and onnxscript and onnxruntime: pip install 'gda[export]'"
    assert needs in capsys.readouterr().err
    assert not (copied / "export").exists()
    assert main([str(copied), "--formats", "safetensors"]) == 0


def test_another_models_folder_is_not_overwritten(
    exported: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps({**run, "id": "another"}))
    before = (exported / "model.json").read_bytes()
    assert main([str(copied), "--to", str(exported)]) == 1
    assert "holds another model. Name another folder with --to" in capsys.readouterr().err
    assert (exported / "model.json").read_bytes() == before
    assert main([str(copied), "--to", str(copied / "run.json")]) == 1
    assert "is a file; name a folder with --to" in capsys.readouterr().err


def test_a_full_disk_is_said_and_the_torn_export_is_not_loaded(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(copied), "--formats", "safetensors"]) == 0
    folder = copied / "export"

    def full(path: Path, content: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("gda.interchange.export_folder.write_json_atomic", full)
    capsys.readouterr()
    assert main([str(copied), "--formats", "safetensors", "--weights", "ema"]) == 1
    said = f"The export can't be written: No space left on device: {folder / 'model.json'}.\n"
    assert capsys.readouterr().err == said
    with pytest.raises(UserError, match="interrupted"):
        load_exported(folder)
