import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gda.app import finish
from gda.data.loader import TensorLoader
from gda.interchange.export_student import main

Compose = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def finished(tiny: Compose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run: plain training of a resnet8 with its moving average, two epochs."""
    runs = tmp_path_factory.mktemp("runs")
    plain = ("distiller=vanilla", "alignment=none", "teacher=none", "trainer.ema_decay=0.5")
    return finish(tiny(*plain, "study=weights", f"runs={runs}")).folder


@pytest.fixture(scope="session")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's export in all formats."""
    folder = tmp_path_factory.mktemp("exported") / "folder"
    assert main([str(finished), "--to", str(folder)]) == 0
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder, for the tests that change it."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "seed0"))


@pytest.fixture(scope="session")
def digits(compose: Compose) -> Tensor:
    """Eleven normalised test images."""
    from hydra.utils import instantiate

    data = instantiate(compose("dataset.image_size=8")["dataset"], _convert_="all").load()
    batch = next(TensorLoader(data.test, 11, {}, data.mean, data.std).batches())
    return batch.images


@pytest.fixture(scope="session")
def logits(finished: Path, digits: Tensor) -> Callable[..., Tensor]:
    """What the weights of a checkpoint of the run say to the images, in evaluation mode."""
    from gda.models import create_model

    def of(file: str = "last.pt", key: str = "model") -> Tensor:
        model = create_model("resnet8", 10)
        model.load_state_dict(torch.load(finished / file, weights_only=True)[key])
        with torch.inference_mode():
            return model.eval()(digits)

    return of


@pytest.fixture(scope="session")
def foreign(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's student as another project would have saved it, its name in need of care."""
    state = torch.load(finished / "last.pt", weights_only=True)["model"]
    path = tmp_path_factory.mktemp("foreign") / "of another | project.pth"
    wrapped = {f"module.{key}": value for key, value in state.items()}
    torch.save({"model": wrapped, "epoch": 240, "best_acc": 71.25}, path)
    return path
