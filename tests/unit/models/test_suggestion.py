"""Which model weights belong to: found by the names and shapes of their parameters."""

import pytest
import torch
from torch import Tensor

from gda.models import create_model, list_models
from gda.models.weights.suggestion import suggest


def shapes(name: str, classes: int | None) -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(create_model(name, classes).state_dict())


def test_every_model_of_the_zoo_is_found_by_its_weights() -> None:
    for name in list_models():
        assert suggest(shapes(name, 13)) == f"these weights fit {name} with 13 classes"


@pytest.mark.parametrize("beside", ["temp", "classifier.linear.weight"])
def test_an_encoder_is_found_in_a_few_shot_classifier(beside: str) -> None:
    state = shapes("convnet4", None)
    assert suggest(state) == "these weights fit convnet4 without a head"
    wrapped = {**{f"encoder.{key}": value for key, value in state.items()}, beside: torch.zeros(1)}
    assert suggest(wrapped) == "these weights fit convnet4 without a head"


def test_two_numbers_of_classes_in_one_file_fit_nothing() -> None:
    state = shapes("resnet8", 13)
    state["fc.bias"] = torch.zeros(14)
    assert suggest(state) is None
    assert suggest(state, "resnet8") == "the file calls its architecture resnet8"
    assert suggest(state, "a\nb") == r"the file calls its architecture a\nb"


def test_weights_without_batch_counters_are_found_too() -> None:
    state = {key: value for key, value in shapes("resnet8", 3).items() if "num_batches" not in key}
    assert suggest(state) == "these weights fit resnet8 with 3 classes"


def test_a_suggestion_draws_nothing_from_the_random_generator() -> None:
    before = torch.get_rng_state()
    suggest(shapes("resnet8", 3))
    assert torch.equal(torch.get_rng_state(), before)
