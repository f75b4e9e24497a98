"""The temperature of a meta-learner is found in whatever file holds its weights, and nothing else is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gda.errors import UserError
from gda.models import create_model
from gda.models.weights.meta_learner import learned_temperature
from gda.models.zoo.meta_baseline import MetaBaseline

State = dict[str, Tensor]
Saved = Callable[[dict[str, Any]], Path]


def meta(temperature: float, learnable: bool = True) -> State:
    encoder = create_model("convnet4", None, image_size=16)
    return MetaBaseline(encoder, "cos", temperature, learnable).state_dict()


def gda_run(state: State) -> dict[str, Any]:
    return {"format": 1, "epoch": 3, "metrics": {"epoch": 3, "temperature": 99.0}, "model": state}


LAYOUTS: dict[str, Callable[[State], dict[str, Any]]] = {
    "bare": lambda state: dict(state),
    "gda_run": gda_run,
    "few_shot_meta_baseline": lambda state: {
        "model": "meta-baseline",
        "model_args": {"encoder": "convnet4", "encoder_args": {}, "temp": 10.0},
        "model_sd": state,
        "training": {"epoch": 20},
    },
    "data_parallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "distiller": lambda state: {f"student.{key}": value for key, value in state.items()},
}


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    def save(content: dict[str, Any]) -> Path:
        torch.save(content, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return save


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_it_is_read_from_every_layout(layout: Callable[[State], dict[str, Any]], saved: Saved) -> None:
    assert learned_temperature(saved(layout(meta(7.25)))) == 7.25


def test_it_is_read_from_safetensors(tmp_path: Path) -> None:
    save_file(meta(7.25), tmp_path / "model.safetensors")
    assert learned_temperature(tmp_path / "model.safetensors") == 7.25


def test_the_moving_average_has_its_own(saved: Saved) -> None:
    path = saved(gda_run(meta(7.25)) | {"model_ema": meta(8.5)})
    assert learned_temperature(path) == 7.25
    assert learned_temperature(path, "ema") == 8.5


def test_it_is_a_number_of_one_value_in_any_shape(saved: Saved) -> None:
    assert learned_temperature(saved(meta(1.0) | {"temp": torch.tensor([4.5])})) == 4.5
    assert learned_temperature(saved(meta(1.0) | {"temp": torch.tensor([4.5, 5.0])})) is None


def of(name: str, classes: int | None, **options: Any) -> Callable[[], State]:
    return lambda: create_model(name, classes, **options).state_dict()


OTHERS: dict[str, Callable[[], State]] = {
    "meta_learner_of_a_fixed_one": lambda: meta(7.25, learnable=False),
    "encoder": of("convnet4", None, image_size=16),
    "classifier": of("convnet4", 5, image_size=16),
    "cosine_classifier": of("convnet4", 5, image_size=16, head="cosine"),  # classifier.temp is its own
    "another_model": of("resnet8", 5),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_classifiers_and_encoders_have_none(make: Callable[[], State], saved: Saved) -> None:
    assert learned_temperature(saved(gda_run(make()))) is None


def test_what_can_not_be_read_is_refused(saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no moving average"):
        learned_temperature(saved(gda_run(meta(7.25))), "ema")
    with pytest.raises(UserError, match=r"nowhere\.pth"):
        learned_temperature(tmp_path / "nowhere.pth")
