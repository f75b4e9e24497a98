"""Models by name: what is known, what is refused, and with what words."""

import subprocess
import sys

import pytest
import torch

from gda.errors import UserError
from gda.models import create_model, list_models
from gda.models.registry import find_builder
from gda.models.zoo.resnet_cifar import CifarResNet

RESNETS = ["resnet8", "resnet20", "resnet32", "resnet56", "resnet80", "resnet110", "resnet8x4", "resnet32x4"]


def test_the_list_is_sorted_and_holds_the_cifar_resnets() -> None:
    assert list_models() == sorted(list_models())
    assert set(RESNETS) <= set(list_models())


@pytest.mark.parametrize("name", ["resnet8", "resnet8x4"])
@pytest.mark.parametrize("size", [8, 16, 32, 40])
def test_any_image_size_gives_logits(name: str, size: int) -> None:
    model = create_model(name, num_classes=7)
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_weights_come_from_the_global_generator() -> None:
    first, second = (_weights(seed=3) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, _weights(seed=4))


def _weights(seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.cat([p.detach().flatten() for p in create_model("resnet8", num_classes=3).parameters()])


def test_initialisation_is_kaiming_by_fan_out() -> None:
    torch.manual_seed(0)
    model = CifarResNet(8, num_classes=10, widths=(32, 64, 128, 256))
    weight = model.layer3[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    assert (model.bn1.weight == 1).all()
    assert (model.bn1.bias == 0).all()


@pytest.mark.parametrize("depth", [2, 9, 18])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="6n"):
        CifarResNet(depth, num_classes=10)


def test_an_unknown_name_gets_the_nearest_ones_and_the_list() -> None:
    with pytest.raises(UserError) as error:
        create_model("resnet65", num_classes=10)
    message = str(error.value)
    assert "Did you mean" in message
    assert "resnet56" in message.split("The zoo has")[0]
    assert "timm/" in message


def test_an_unknown_option_is_named_with_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"has no option width\. Did you mean widths"):
        create_model("resnet8", num_classes=10, width=(1, 1, 1, 1))


def test_timm_models_and_their_options() -> None:
    model = create_model("timm/resnet10t", num_classes=5, drop_rate=0.25)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    assert model.drop_rate == 0.25


def test_unknown_timm_names_and_tags_get_the_nearest_ones() -> None:
    with pytest.raises(UserError, match=r"Did you mean .*timm/resnet18"):
        find_builder("timm/resnet81")
    with pytest.raises(UserError, match=r"timm/resnet18\.a1_in1k"):
        find_builder("timm/resnet18.a1_in2k")
    find_builder("timm/resnet18.a1_in1k")


def test_timm_is_imported_only_for_timm_names() -> None:
    code = "import sys, gda.models as m; m.create_model('resnet8', 10); sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
