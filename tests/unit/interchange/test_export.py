"""Export of a finished run: what is in the files, that they are checked, and that nothing half is left."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gda.config.check import check
from gda.errors import UserError
from gda.interchange import formats
from gda.interchange.eager_model import EagerModel
from gda.interchange.export_student import export, main
from gda.interchange.finished_student import read_student
from gda.interchange.formats import FORMATS, TorchExport
from gda.models import create_model, load_checkpoint, load_exported

ROOT = Path(__file__).resolve().parents[3]

Compose = Callable[..., dict[str, Any]]
Logits = Callable[..., Tensor]


def described(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.json").read_text())


def said(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(images)


def test_one_call_gives_the_trained_student_back_bit_by_bit(
    exported: Path, digits: Tensor, logits: Logits
) -> None:
    model = load_exported(exported)
    assert not model.training
    assert torch.equal(said(model, digits), logits())


@pytest.mark.parametrize("batch", [1, 2, 11])
def test_the_onnx_file_says_what_the_student_says_to_any_number_of_images(
    exported: Path, digits: Tensor, logits: Logits, batch: int
) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": digits[:batch].numpy()})
    assert session.get_inputs()[0].shape == ["batch", 3, 8, 8]
    difference = (torch.from_numpy(found) - logits()[:batch]).abs().max() / logits().abs().max()
    assert difference < 1e-5


@pytest.mark.parametrize("batch", [1, 2, 11])
def test_the_recorded_graph_says_what_the_student_says_to_any_number_of_images(
    exported: Path, digits: Tensor, logits: Logits, batch: int
) -> None:
    model = torch.export.load(exported / "model.pt2").module()
    difference = (said(model, digits[:batch]) - logits()[:batch]).abs().max() / logits().abs().max()
    assert difference < 1e-5


def test_the_description_says_what_the_model_is_takes_and_comes_from(finished: Path, exported: Path) -> None:
    content = described(exported)
    run = json.loads((finished / "run.json").read_text())
    last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert content["architecture"] == {
        "name": "resnet8",
        "target": None,
        "options": {},
        "classes": 10,
        "parameters": sum(each.numel() for each in create_model("resnet8", 10).parameters()),
    }
    assert content["class_names"] == list("0123456789")
    image = {"image_size": 8, "mean": [0.306] * 3, "std": [0.376] * 3}
    assert content["input"] == {"layout": "NCHW", "type": "float32", **image}
    source = content["source"]
    assert {key: source[key] for key in ("run", "group", "seed")} == {
        "run": run["id"],
        "group": run["group"],
        "seed": 0,
    }
    assert source["commit"] == (run["git"] or {}).get("commit")
    assert (source["checkpoint"], source["weights"], source["epoch"]) == ("last.pt", "raw", 2)
    assert source["metrics"] == last


def test_every_file_is_described_by_its_hash_and_its_distance_from_the_eager_model(exported: Path) -> None:
    files = described(exported)["files"]
    assert {path.name for path in exported.iterdir()} == {*files, "model.json"}
    assert set(files) == {"model.safetensors", "model.onnx", "model.pt2"}
    for name, facts in files.items():
        data = (exported / name).read_bytes()
        assert facts["sha256"] == hashlib.sha256(data).hexdigest()
        assert facts["bytes"] == len(data)
        assert facts["relative_difference"] <= facts["allowed_relative_difference"]
    assert files["model.safetensors"]["allowed_relative_difference"] == 0


def test_no_path_of_this_machine_is_in_the_files(exported: Path) -> None:
    for path in exported.iterdir():
        assert str(ROOT).encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("select", "weights", "file", "key"),
    [("best", "raw", "best.pt", "model"), ("last", "ema", "last.pt", "model_ema")],
)
def test_the_selected_weights_are_exported(
    finished: Path,
    digits: Tensor,
    logits: Logits,
    tmp_path: Path,
    select: str,
    weights: str,
    file: str,
    key: str,
) -> None:
    arguments = [str(finished), "--to", str(tmp_path / "out"), "--formats", "safetensors"]
    assert main([*arguments, "--select", select, "--weights", weights]) == 0
    assert torch.equal(said(load_exported(tmp_path / "out"), digits), logits(file, key))
    source = described(tmp_path / "out")["source"]
    assert (source["checkpoint"], source["weights"]) == (file, weights)


def test_the_moving_average_is_not_the_raw_weights(logits: Logits) -> None:
    assert not torch.equal(logits("last.pt", "model_ema"), logits())


def test_the_weights_file_alone_is_a_checkpoint_with_its_epoch_and_figures(exported: Path) -> None:
    loaded = load_checkpoint(create_model("resnet8", 10), exported / "model.safetensors")
    source = described(exported)["source"]
    assert loaded.epoch == 2
    assert loaded.metrics["test_top1"] == source["metrics"]["test_top1"]


@pytest.mark.parametrize("named", ["", "model.safetensors"])
def test_an_export_is_a_teacher(exported: Path, tiny: Compose, named: str) -> None:
    assert check(tiny("student=resnet8", "teacher=resnet8", f"teacher.checkpoint={exported / named}")) == []


def test_a_second_export_replaces_the_first_and_leaves_none_of_its_files(copied: Path) -> None:
    assert main([str(copied), "--formats", "torch_export"]) == 0
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        load_exported(copied / "export")
    assert main([str(copied), "--formats", "safetensors"]) == 0
    assert {path.name for path in (copied / "export").iterdir()} == {"model.safetensors", "model.json"}


def test_a_format_that_fails_its_check_leaves_no_file_and_a_sentence(
    copied: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    digits: Tensor,
    logits: Logits,
) -> None:
    (copied / "export").mkdir()
    (copied / "export" / "model.pt2").write_text("of an earlier export")

    def slightly_wrong(self: TorchExport, eager: EagerModel) -> bytes:
        buffer = io.BytesIO()
        program = eager.program
        with torch.no_grad():
            program.state_dict["fc.bias"] += 2e-4 * max(float(each.abs().max()) for each in eager.logits)
        torch.export.save(program, buffer)
        return buffer.getvalue()

    monkeypatch.setattr(TorchExport, "content", slightly_wrong)
    assert main([str(copied), "--formats", "safetensors,torch_export"]) == 1
    printed = capsys.readouterr()
    said_of_it = "its logits are off by 2.0e-04 of the largest logit, and 1e-04 is allowed"
    assert printed.err == f"model.pt2 was not written: {said_of_it}.\n"
    assert {path.name for path in (copied / "export").iterdir()} == {"model.safetensors", "model.json"}
    assert set(described(copied / "export")["files"]) == {"model.safetensors"}
    assert torch.equal(said(load_exported(copied / "export"), digits), logits())


def test_weights_that_come_back_changed_by_one_bit_are_not_written(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = formats.safetensors.torch.load

    def flipped(data: bytes) -> dict[str, Tensor]:
        state = load(data)
        state["fc.weight"].view(torch.int32)[0, 0] ^= 1 << 16
        return state

    monkeypatch.setattr(formats.safetensors.torch, "load", flipped)
    assert main([str(copied), "--formats", "safetensors"]) == 1
    assert "model.safetensors was not written" in capsys.readouterr().err
    assert not (copied / "export").exists()


class Branching(nn.Module):
    """A class of one's own whose way depends on the pixels: it can't be recorded as a graph."""

    def __init__(self, num_classes: int, name: str, gain: float = 1.0) -> None:
        super().__init__()
        self.fc = nn.Linear(3, num_classes)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(dim=(2, 3))
        if pooled.sum() > 0:
            pooled = self.gain * pooled
        return self.fc(pooled)


def test_a_model_that_no_graph_can_hold_is_exported_as_weights_and_not_built_by_the_file(
    finished: Path, tmp_path: Path
) -> None:
    node = {"_target_": f"{__name__}.Branching", "name": "branching", "gain": 2.0}
    student = read_student(finished)
    config = {**student.config, "student": node}
    mine = Branching(10, "branching", 2.0).eval()
    student = dataclasses.replace(student, config=config, state=mine.state_dict())
    failed = export(student, tmp_path / "out", list(FORMATS.values()))
    assert [str(each).split(" can't")[0] for each in failed] == ["model.onnx", "model.pt2"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.safetensors", "model.json"}
    architecture = described(tmp_path / "out")["architecture"]
    assert (architecture["name"], architecture["target"]) == (None, node["_target_"])
    assert architecture["options"] == {"gain": 2.0}
    with pytest.raises(UserError, match=r"Branching.*Build it, with 10 classes.*load_checkpoint\(model"):
        load_exported(tmp_path / "out")
    again = Branching(10, "branching", 2.0).eval()
    load_checkpoint(again, tmp_path / "out" / "model.safetensors")
    images = torch.randn(3, 3, 8, 8)
    assert torch.equal(said(again, images), said(mine, images))
