"""Import of foreign checkpoints: conversion, model card, measured accuracy, and what is refused."""

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gda.config.check import check
from gda.errors import UserError
from gda.interchange.eager_model import EagerModel
from gda.interchange.import_weights import main
from gda.interchange.model_input import ModelInput
from gda.models import create_model, load_exported

ROOT = Path(__file__).resolve().parents[3]
DIGITS = ("--dataset", "digits", "--recipe", "digits")

Compose = Callable[..., dict[str, Any]]
Logits = Callable[..., Tensor]


@pytest.fixture(scope="session")
def imported(foreign: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command has made of it, with the digits at hand."""
    folder = tmp_path_factory.mktemp("imported") / "folder"
    assert main([str(foreign), "--model", "resnet8", *DIGITS, "--to", str(folder)]) == 0
    return folder


def described(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.json").read_text())


def rows(folder: Path) -> dict[str, str]:
    """The table of a model card."""
    lines = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| ")]
    return dict(line.strip("| ").split(" | ", 1) for line in lines[2:])


def test_the_weights_come_through_bit_by_bit(imported: Path, digits: Tensor, logits: Logits) -> None:
    model = load_exported(imported)
    assert not model.training
    with torch.inference_mode():
        assert torch.equal(model(digits), logits())


def test_the_measured_accuracy_is_the_one_of_training(finished: Path, imported: Path) -> None:
    last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    measured = described(imported)["measured"]
    assert measured["images"] == 900
    assert measured["top1"] == last["test_top1"]
    assert measured["top5"] == last["test_top5"]
    assert measured["loss"] == pytest.approx(last["test_loss"], rel=1e-6)
    assert rows(imported)["test accuracy"] == (
        f"top-1 {last['test_top1']:.2f} %, top-5 {last['test_top5']:.2f} % of 900 images of digits "
        "(recipe digits)"
    )


def test_the_model_card_says_what_it_is_and_where_it_is_from(foreign: Path, imported: Path) -> None:
    card = rows(imported)
    source = hashlib.sha256(foreign.read_bytes()).hexdigest()
    result = hashlib.sha256((imported / "model.safetensors").read_bytes()).hexdigest()
    assert card["source"] == f"`{foreign}`".replace("|", "\\|")
    assert card["format of the source"] == "RepDistiller"
    assert card["SHA-256 of the source"] == f"`{source}`"
    assert card["SHA-256 of `model.safetensors`"] == f"`{result}`"
    assert card["architecture"] == "`resnet8`"
    assert card["classes"] == "10"
    parameters = sum(each.numel() for each in create_model("resnet8", 10).parameters())
    assert card["parameters"] == f"{parameters:,}"
    assert card["epoch in the source"] == "240"
    assert card["figures in the source"] == "best_acc 71.25"


def test_the_description_has_the_layout_of_an_export(imported: Path, exported: Path) -> None:
    content, of_export = described(imported), described(exported)
    assert content["class_names"] == list("0123456789")
    assert content["input"] == of_export["input"]
    assert content["architecture"] == of_export["architecture"]
    assert set(of_export) <= set(content)
    assert content["source"]["metrics"] == {"best_acc": 71.25}
    assert content["source"]["epoch"] == 240


def test_the_launch_line_of_the_card_is_without_faults(imported: Path, tiny: Compose) -> None:
    card = (imported / "README.md").read_text()
    line = card.partition("```bash\n")[2].partition("```")[0].replace("\\\n", " ")
    python, launch, *overrides = shlex.split(line)
    assert (python, launch) == ("python", "launch.py")
    assert f"teacher.checkpoint={imported / 'model.safetensors'}" in overrides
    assert check(tiny(*overrides)) == []


def test_without_the_images_the_accuracy_is_not_measured_and_the_card_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(create_model("resnet8", 100).state_dict(), weights)
    folder = tmp_path / "out"
    where = ["--dataset", "cifar100", "--root", str(tmp_path / "no data"), "--to", str(folder)]
    assert main([str(weights), "--model", "resnet8", *where]) == 0
    content = described(folder)
    assert content["architecture"]["classes"] == 100
    assert content["input"]["mean"] == [0.5071, 0.4867, 0.4408]
    assert content["class_names"] is None
    assert content["measured"]["top1"] is None
    said = f"not measured: data set cifar100: there is no folder {tmp_path / 'no data' / 'cifar-100-python'}"
    assert rows(folder)["test accuracy"].startswith(said)
    assert rows(folder)["epoch in the source"] == "not stated"
    printed = capsys.readouterr().out
    assert printed.startswith(said)
    assert "--root FOLDER" in printed
    assert load_exported(folder)(torch.zeros(1, 3, 32, 32)).shape == (1, 100)


def test_the_recipe_says_which_statistics_and_images_the_weights_expect(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(create_model("resnet8", 100).state_dict(), weights)
    arguments = [str(weights), "--model", "resnet8", "--dataset", "cifar100", "--root", str(tmp_path)]
    assert main([*arguments, "--recipe", "w2s", "--to", str(tmp_path / "out")]) == 0
    content = described(tmp_path / "out")
    assert content["input"]["mean"] == [0.5071, 0.4865, 0.4409]
    assert content["measured"]["recipe"] == "w2s"


def test_the_moving_average_can_be_chosen(
    finished: Path, tmp_path: Path, digits: Tensor, logits: Logits
) -> None:
    arguments = [str(finished / "last.pt"), "--model", "resnet8", *DIGITS, "--to", str(tmp_path / "out")]
    assert main([*arguments, "--weights", "ema"]) == 0
    with torch.inference_mode():
        assert torch.equal(load_exported(tmp_path / "out")(digits), logits("last.pt", "model_ema"))
    assert rows(tmp_path / "out")["weights"] == "moving average"


def test_options_of_the_model_and_of_the_data_are_kept(
    tmp_path: Path, image_root: Path, tiny: Compose
) -> None:
    widths = [4, 4, 8, 8]
    torch.save(create_model("resnet8", 2, widths=widths).state_dict(), tmp_path / "weights.pth")
    folder = tmp_path / "out"
    settings = ["--set", f"model.widths={widths}", "--set", "dataset.image_size=8"]
    settings += ["--set", "dataset.name=pets"]
    where = ["--dataset", "image_folder", "--root", str(image_root), "--to", str(folder)]
    assert main([str(tmp_path / "weights.pth"), "--model", "resnet8", *where, *settings]) == 0
    content = described(folder)
    assert content["architecture"]["options"] == {"widths": widths}
    assert content["input"]["image_size"] == 8
    assert content["class_names"] == ["cat", "dog"]
    assert content["measured"]["images"] == 8
    assert load_exported(folder)(torch.zeros(1, 3, 8, 8)).shape == (1, 2)
    card = (folder / "README.md").read_text()
    overrides = shlex.split(card.partition("```bash\n")[2].partition("```")[0].replace("\\\n", " "))[2:]
    config = tiny(*overrides, "dataset.train_size=8", "recipe.batch_size=4")
    assert config["teacher"]["widths"] == widths
    assert check(config) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "resnet9", *DIGITS), "no model 'resnet9'. Did you mean resnet8"),
        (("--model", "resnet20", *DIGITS), "do not fit the model: .*these weights fit resnet8"),
        (("--model", "resnet8", *DIGITS, "--set", "model.width=3"), "no option width. Did you mean widths"),
        (("--model", "resnet8", *DIGITS, "--set", "model.widths"), "not of the form model.KEY=VALUE"),
        (
            ("--model", "resnet8", *DIGITS, "--set", "model.widths=[16"),
            "'\\[16' is no value as YAML writes it",
        ),
        (("--model", "resnet8", *DIGITS, "--weights", "ema"), "no moving average"),
        (("--model", "resnet8", *DIGITS, "--sha256", 64 * "0"), "its SHA-256 is"),
        (("--model", "resnet8", *DIGITS, "--root", "data"), "digits comes with its images.*leave out --root"),
        (
            ("--model", "resnet8", *DIGITS, "--set", "dataset.image_siz=8"),
            "no 'image_siz'; did you mean 'image_size'",
        ),
        (
            ("--model", "resnet8", *DIGITS, "--set", "dataset.image_size=big"),
            "'big' is not a whole number",
        ),
        (("--model", "resnet8", *DIGITS, "--set", "dataset.image_size=8,16"), "The settings do not compose"),
        (
            ("--model", "resnet8", "--dataset", "cifar1000"),
            "no data set 'cifar1000'; did you mean 'cifar100'",
        ),
        (
            ("--model", "resnet8", "--dataset", "digits", "--recipe", "digit"),
            "no recipe 'digit'; did you mean 'digits'",
        ),
        (("--model", "resnet8", "--dataset", "cifar100"), "trained for 10 classes, and the model has 100"),
        (("--model", "resnet8", "--dataset", "image_folder"), "image_folder with --root FOLDER"),
        (
            ("--model", "resnet8", "--dataset", "image_folder", "--root", "/nowhere"),
            "classes the data set image_folder has can't be known: there is no folder /nowhere",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_words_and_nothing_is_written(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    assert main([str(foreign), *arguments, "--to", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    with pytest.raises(UserError, match=says):
        raise UserError(printed.err)
    assert not (tmp_path / "out").exists()


def test_images_that_the_model_can_not_take_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(create_model("convnet4", 10, image_size=32).state_dict(), tmp_path / "weights.pth")
    arguments = [str(tmp_path / "weights.pth"), "--model", "convnet4", *DIGITS, "--to", str(tmp_path / "out")]
    built_for_more = ["--set", "model.image_size=32", "--set", "dataset.image_size=16"]
    assert main([*arguments, *built_for_more]) == 1
    assert "build the model for these images: image_size=16" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    of_four_pixels = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    with pytest.raises(UserError, match="The model can't take images of 8 pixels: mat1 and mat2"):
        EagerModel(of_four_pixels, lambda: of_four_pixels, ModelInput(10, 8, (0.5,) * 3, (0.5,) * 3))


def test_the_folder_of_another_checkpoint_is_kept(
    imported: Path, finished: Path, foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in imported.iterdir()}
    assert main([str(finished / "best.pt"), "--model", "resnet8", *DIGITS, "--to", str(imported)]) == 1
    assert "holds another model" in capsys.readouterr().err
    assert main([str(foreign), "--model", "resnet8", *DIGITS, "--to", str(imported)]) == 0  # the same again
    assert {path: path.read_bytes() for path in imported.iterdir()} == before


def test_the_default_folder_is_named_after_model_and_data_set(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(foreign), "--model", "resnet8", *DIGITS]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "weights/resnet8-digits"
    assert (tmp_path / "weights" / "resnet8-digits" / "README.md").is_file()
