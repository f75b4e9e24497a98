"""How a model is described, so that it can be built again."""

from typing import Any

import pytest
from torch import nn

from gda.errors import UserError
from gda.interchange.architecture import build, describe_architecture

ZOO, TIMM = "gda.models.create_model", "gda.models.create_timm_model"


@pytest.mark.parametrize(
    ("node", "name", "options"),
    [
        ({"_target_": ZOO, "name": "vgg13"}, "vgg13", {}),
        ({"_target_": ZOO, "name": "timm/vgg13"}, "timm/vgg13", {}),  # not the zoo's
        ({"_target_": TIMM, "name": "vgg13", "pretrained": True}, "timm/vgg13", {}),
        ({"_target_": TIMM, "name": "timm/vgg13", "drop_rate": 0.1}, "timm/vgg13", {"drop_rate": 0.1}),
        ({"_target_": "gda.models.registry.create_model", "name": "resnet8"}, "resnet8", {}),
        ({"_target_": "torch.nn.Linear", "name": "mine", "in_features": 3}, None, {"in_features": 3}),
    ],
)
def test_a_node_is_described_by_the_name_that_builds_it_again(
    node: dict[str, Any], name: str | None, options: dict[str, Any]
) -> None:
    described = describe_architecture(node, nn.Linear(3, 2), 2)
    assert described["name"] == name
    assert described["options"] == options
    assert described["target"] == (None if name else "torch.nn.Linear")
    assert (described["classes"], described["parameters"]) == (2, 8)


def test_published_weights_are_not_fetched_to_be_replaced() -> None:
    made = build({"_target_": "builtins.dict", "name": "x", "pretrained": True}, 10)
    assert made == {"name": "x", "pretrained": False, "num_classes": 10}


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ({"_target_": ZOO, "name": "resnet9"}, "^there is no model 'resnet9'. Did you mean resnet8"),
        ({"_target_": "torch.nn.Linear", "in_features": 3}, "The model can't be built: .*num_classes"),
    ],
)
def test_what_can_not_be_built_is_said_in_a_sentence(node: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        build(node, 10)
