"""Further views of the images: which are refused, and which change what run a config is."""

from collections.abc import Callable
from typing import Any

import pytest

from gda.config.check import check
from gda.config.inputs import identify_run

Compose = Callable[..., dict[str, Any]]
Faults = Callable[..., dict[str, str]]
Changed = Callable[..., dict[str, Any]]

STRONG = "recipe.view_transforms.strong"
CROP = {"_target_": "gda.data.transforms.CenterCrop", "size": 4}


@pytest.fixture
def group(changed: Changed) -> Callable[..., str]:
    return lambda *arguments: identify_run(changed(*arguments)).group


def test_every_recipe_has_a_strong_view_of_the_same_kind(compose: Compose) -> None:
    views = [compose(f"recipe={name}")["recipe"]["view_transforms"] for name in ("crd", "w2s", "digits")]
    assert views[0] == views[1] == views[2]
    assert set(views[0]) == {"strong"}


def test_a_method_whose_view_the_recipe_lacks_is_refused(faults: Faults) -> None:
    assert faults({}, "distiller=mlkd") == {}
    found = faults({"recipe.view_transforms": {}}, "distiller=mlkd")
    assert set(found) == {STRONG}
    assert f"+{STRONG}.augment._target_=gda.data.random_augment.RandomAugment" in found[STRONG]
    assert faults({"recipe.view_transforms": {}}, "distiller=kd") == {}


@pytest.mark.parametrize(
    "typed", [f"+{STRONG}.augment._target_=gda.data.random_augment.RandomAugment", f"+{STRONG}={{}}"]
)
def test_what_is_to_be_typed_then_helps(
    typed: str, compose: Compose, tiny_overrides: Callable[..., list[str]]
) -> None:
    overrides = [*tiny_overrides("distiller=mlkd"), f"~{STRONG}"]
    assert [fault.where for fault in check(compose(*overrides))] == [STRONG]
    assert check(compose(*overrides, typed)) == []


def test_arguments_and_ranges_of_a_view_are_checked(faults: Faults) -> None:
    found = faults(
        {
            f"{STRONG}.augment.cuont": 3,
            f"{STRONG}.cutout.max_side": 1.5,
            f"{STRONG}.cutout.colour": [125, 123, 256],
        }
    )
    assert "did you mean 'count'" in found.pop(f"{STRONG}.augment.cuont")
    assert "at most 1" in found.pop(f"{STRONG}.cutout.max_side")
    assert "in [125, 123, 256], 256 must be" in found.pop(f"{STRONG}.cutout.colour")
    assert found == {}


@pytest.mark.parametrize("value", ["RandomAugment", 3, [{"_target_": "x"}]])
def test_views_are_named_transforms(value: Any, faults: Faults) -> None:
    assert "a mapping" in faults({"recipe.view_transforms": value})["recipe.view_transforms"]
    assert "a mapping" in faults({STRONG: value})[STRONG]


def test_a_view_has_the_size_of_the_training_images(faults: Faults) -> None:
    found = faults({STRONG: {"crop": CROP}})
    assert set(found) == {STRONG}
    assert "training images come out 8 pixels wide and the view strong 4" in found[STRONG]
    small = {"recipe.train_transforms": {"crop": CROP}, "recipe.test_transforms": {"crop": CROP}}
    assert faults(small) == {}
    assert set(faults({**small, STRONG: {"crop": {**CROP, "size": 5}}})) == {f"{STRONG}.crop"}


def test_a_view_that_no_term_looks_at_is_no_part_of_the_group(group: Callable[..., str]) -> None:
    none, other = {"recipe.view_transforms": {}}, {f"{STRONG}.augment.count": 3}
    assert group({}, "distiller=kd") == group(none, "distiller=kd") == group(other, "distiller=kd")


def test_a_view_that_a_term_looks_at_is_part_of_the_group(
    changed: Changed, group: Callable[..., str]
) -> None:
    plain = group({}, "distiller=mlkd")
    assert plain != group({f"{STRONG}.augment.count": 3}, "distiller=mlkd")
    assert plain == group({"recipe.view_transforms.another": {"crop": CROP}}, "distiller=mlkd")
    augment, cutout = changed()["recipe"]["view_transforms"]["strong"].items()
    assert plain != group({STRONG: dict([cutout, augment])}, "distiller=mlkd")
    # Without its terms it is plain training, whatever the view.
    config, other = (changed({f"{STRONG}.augment.count": n}, "distiller=mlkd") for n in (2, 3))
    assert identify_run(config).vanilla_group == identify_run(other).vanilla_group


def test_the_teacher_of_such_a_run_is_shared_with_all_others(changed: Changed) -> None:
    from gda.config.stages import teacher_run

    one, other = (identify_run(teacher_run(changed({}, f"distiller={name}"))) for name in ("kd", "mlkd"))
    assert one == other
