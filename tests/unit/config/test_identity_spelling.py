"""One choice, spelled in several ways, is one group; the order of transforms is a choice."""

from collections.abc import Callable
from typing import Any

import pytest

from gda.config.identity import label_of
from gda.config.inputs import identify_run

Changed = Callable[..., dict[str, Any]]
CROP = {"_target_": "gda.data.transforms.PadCrop", "padding": 1}
FLIP = {"_target_": "gda.data.transforms.HorizontalFlip", "probability": 0.5}


@pytest.fixture
def group(changed: Changed) -> Callable[..., str]:
    return lambda *arguments: identify_run(changed(*arguments)).group


def test_the_order_of_transforms_counts(group: Callable[..., str]) -> None:
    crop_first = group({"recipe.train_transforms": {"a": CROP, "b": FLIP}})
    flip_first = group({"recipe.train_transforms": {"b": FLIP, "a": CROP}})
    assert crop_first != flip_first


def test_a_null_transform_is_none(group: Callable[..., str]) -> None:
    with_null = group({"recipe.train_transforms": {"a": CROP, "b": None}})
    assert with_null == group({"recipe.train_transforms": {"a": CROP}})


def test_a_weight_without_warm_up_is_a_number(group: Callable[..., str]) -> None:
    spelled = [{"value": 0.9}, {"value": 0.9, "warmup_epochs": 0}, 0.9]
    assert len({group({"distiller.terms.kd.weight": weight}) for weight in spelled}) == 1
    warmed = group({"distiller.terms.kd.weight": {"value": 0.9, "warmup_epochs": 2}})
    assert warmed != group({"distiller.terms.kd.weight": 0.9})


def test_gda_without_fisher_rao_is_sinkhorn(changed: Changed, compose: Callable[..., dict[str, Any]]) -> None:
    alone = identify_run(compose("alignment=sinkhorn")).group
    assert alone == identify_run(compose("alignment=gda", "alignment.fisher_rao.weight=0")).group


def test_an_alignment_of_weight_zero_is_none(compose: Callable[..., dict[str, Any]]) -> None:
    empty = compose("alignment=gda", "alignment.fisher_rao.weight=0", "alignment.sinkhorn.weight=0")
    assert identify_run(empty).group == identify_run(compose("alignment=none")).group
    assert identify_run(empty).twin_group is None
    assert label_of(empty) == "kd"


def test_a_student_average_is_no_matter_of_the_teacher(compose: Callable[..., dict[str, Any]]) -> None:
    from gda.config.stages import teacher_run

    averaged = teacher_run(compose("trainer.ema_decay=0.9"))
    assert identify_run(averaged).group == identify_run(teacher_run(compose())).group
