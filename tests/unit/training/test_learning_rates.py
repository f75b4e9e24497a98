"""Schedules and parameter groups equal the published code's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from gda.models import create_model
from gda.training.parameter_groups import parameter_groups
from gda.training.schedules import Cosine, Steps

Compose = Callable[..., dict[str, Any]]
GOLDEN = json.loads((Path(__file__).parent / "golden" / "schedules_w2s.json").read_text())
LONG, SHORT = GOLDEN["cifar_v0"], GOLDEN["cifar_v0 --epochs 20 --warmup-epochs 2"]


def test_w2s_has_the_golden_rate_in_every_epoch(compose: Compose) -> None:
    recipe = compose("recipe=w2s", "dataset=cifar100")["recipe"]
    schedule = instantiate(recipe["schedule"], lr=recipe["lr"], epochs=recipe["epochs"])
    rates = [schedule(epoch) for epoch in range(recipe["epochs"])]
    assert rates == pytest.approx(LONG["lr_by_epoch_group0"], rel=1e-12)
    assert schedule(240) == LONG["lr_after_last_epoch_group0"]
    for epoch, rate in LONG["lr_beyond_the_end_group0"].items():
        assert schedule(int(epoch)) == rate


def test_a_short_run_has_the_golden_rates() -> None:
    schedule = Cosine(lr=0.2, epochs=20, minimum=2e-3, warmup_epochs=2, warmup_lr=1e-4)
    rates = [schedule(epoch) for epoch in range(20)]
    assert rates == pytest.approx(SHORT["lr_by_epoch_group0"], rel=1e-12)


def test_crd_drops_at_its_milestones(compose: Compose) -> None:
    recipe = compose("recipe=crd", "dataset=cifar100")["recipe"]
    schedule = instantiate(recipe["schedule"], lr=0.05, epochs=240)
    expected = [0.05] * 150 + [0.005] * 30 + [0.0005] * 30 + [0.00005] * 30
    assert [schedule(epoch) for epoch in range(240)] == pytest.approx(expected, rel=1e-12)


def test_milestones_need_no_order() -> None:
    assert [Steps(1.0, 9, [4, 2], 0.5)(epoch) for epoch in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_w2s_has_the_golden_parameter_groups(compose: Compose) -> None:
    recipe = compose("recipe=w2s", "dataset=cifar100")["recipe"]
    model = create_model(LONG["model_used_for_groups"], num_classes=100)
    groups = parameter_groups([model], recipe["decay_norm_and_bias"])
    optimizer = instantiate(recipe["optimizer"])(groups, lr=recipe["lr"])
    golden = LONG["optimizer_before_scheduler"]
    assert type(optimizer).__name__ == golden["class"]
    for group, expected in zip(optimizer.param_groups, golden["groups"], strict=True):
        assert len(group["params"]) == expected["params"]
        assert {key: group[key] for key in expected if key != "params"} == {
            key: value for key, value in expected.items() if key != "params"
        }
    counts = [sum(p.numel() for p in group["params"]) for group in groups]
    assert counts == golden["n_elements_by_group"]


def test_crd_decays_every_parameter_in_one_group() -> None:
    model = create_model("resnet20", num_classes=100)
    (group,) = parameter_groups([model], decay_norm_and_bias=True)
    assert len(group["params"]) == len(list(model.parameters()))
    assert "weight_decay" not in group


def test_modules_of_terms_are_trained_with_the_student_and_frozen_parameters_are_not() -> None:
    student, projector = nn.Linear(3, 2), nn.Linear(4, 5, bias=False)
    student.bias.requires_grad_(False)
    groups = parameter_groups([student, projector], decay_norm_and_bias=False)
    assert [list(map(id, group["params"])) for group in groups] == [
        [id(student.weight), id(projector.weight)]
    ]
    assert parameter_groups([student], False) == [{"params": [student.weight]}]


def test_scalars_are_not_decayed() -> None:
    module = nn.Module()
    module.scale = nn.Parameter(torch.tensor(1.0))
    (group,) = parameter_groups([module], decay_norm_and_bias=False)
    assert group["weight_decay"] == 0.0
