"""Classes and images of a model, from a config and from a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from gda.interchange.export_student import main
from gda.interchange.model_input import ModelInput
from gda.models import load_exported

Compose = Callable[..., dict[str, Any]]
Logits = Callable[..., Tensor]


class TestModelInput:
    def test_the_size_is_the_one_after_the_test_transforms(self, compose: Compose, cifar_root: Path) -> None:
        cifar = ("dataset=cifar100", "recipe=w2s", f"dataset.root={cifar_root}")
        assert ModelInput.from_config(compose(*cifar)) == ModelInput(
            100, 32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
        )
        uncropped = ModelInput.from_config(compose(*cifar, "~recipe.test_transforms.crop"))
        assert uncropped is not None
        assert uncropped.image_size == 36

    def test_missing_files_of_a_known_data_set_do_not_matter(self, compose: Compose, tmp_path: Path) -> None:
        known = ModelInput.from_config(compose("dataset=cifar10", "recipe=crd", f"dataset.root={tmp_path}"))
        assert known is not None
        assert (known.classes, known.image_size) == (10, 32)

    def test_random_images_are_normalised_noise(self) -> None:
        images = ModelInput(10, 16, (0.5, 0.5, 0.25), (0.25, 0.25, 0.5)).random_images(40, seed=0)
        assert images.shape == (40, 3, 16, 16)
        bounds = images.amin((0, 2, 3)).tolist(), images.amax((0, 2, 3)).tolist()
        assert bounds == (pytest.approx([-2, -2, -0.5]), pytest.approx([2, 2, 1.5]))


class TestRunsThatDoNotSayWhatTheyTook:
    def silent(self, folder: Path, **dataset: Any) -> None:
        run = json.loads((folder / "run.json").read_text())
        del run["input"]
        (folder / "run.json").write_text(json.dumps(run))
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["dataset"] = dataset or config["dataset"]
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    def test_their_data_set_is_asked(self, copied: Path, digits: Tensor, logits: Logits) -> None:
        self.silent(copied)
        assert main([str(copied), "--formats", "safetensors"]) == 0
        model = load_exported(copied / "export")
        assert torch.equal(model(digits), logits())

    def test_without_it_they_are_refused(self, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
        target = {"_target_": "gda.data.image_folder.ImageFolder", "name": "mine", "root": "/nowhere"}
        self.silent(copied, **target, mean=[0.5] * 3, std=[0.5] * 3)
        assert main([str(copied)]) == 1
        assert "the data set 'mine' is not where config.yaml says (/nowhere)" in capsys.readouterr().err
