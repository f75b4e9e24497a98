"""Every file in conf/ composes, resolves and passes the whole-config check."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from gda.config.check import check
from gda.config.overrides import scan

CONF = Path(__file__).resolve().parents[2] / "conf"
Compose = Callable[..., dict[str, Any]]


def choices(group: str) -> list[str]:
    files = (file.relative_to(CONF / group) for file in (CONF / group).rglob("*.yaml"))
    return sorted(str(file.with_suffix("")) for file in files if not file.name.startswith("_"))


BEHIND = ("model", "_shared")  # parts of choices, not choices
GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name not in BEHIND)
PRESETS = [(group, choice) for group in GROUPS for choice in choices(group)]


def needed(group: str, choice: str, cifar: Path, images: Path) -> list[str]:
    """Whatever a choice can't do without."""
    extra = [f"dataset.root={cifar}"] if choice.startswith(("cifar", "gda/")) else []
    if (group, choice) == ("dataset", "image_folder"):
        extra = [f"dataset.root={images}", "dataset.image_size=8"]
    if group == "recipe" and choice != "digits":
        extra = ["dataset=cifar100", f"dataset.root={cifar}"]
    if (group, choice) == ("teacher", "none"):
        extra = ["distiller=vanilla", "alignment=none"]
    if choice == "timm":
        extra = [f"{group}.name=resnet10t"]
    return extra


@pytest.mark.parametrize(("group", "choice"), PRESETS)
def test_every_choice_composes_and_checks(
    group: str, choice: str, compose: Compose, cifar_root: Path, image_root: Path
) -> None:
    overrides = [f"{group}={choice}", *needed(group, choice, cifar_root, image_root)]
    assert scan(overrides, [CONF]) == []
    config = compose(*overrides)
    assert check(config) == []


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_without_the_data_only_the_folder_is_missing(dataset: str, compose: Compose, tmp_path: Path) -> None:
    (fault,) = check(compose(f"dataset={dataset}", f"dataset.root={tmp_path}", f"runs={tmp_path}"))
    assert fault.where == "dataset"
    assert "dataset.root" in fault.what
    assert "dataset.download=true" in fault.what


@pytest.mark.parametrize(("dataset", "recipe"), list(product(choices("dataset"), choices("recipe"))))
def test_every_recipe_goes_with_every_data_set(
    dataset: str, recipe: str, compose: Compose, cifar_root: Path, image_root: Path
) -> None:
    overrides = [f"dataset={dataset}", f"recipe={recipe}", "recipe.batch_size=8"]
    if dataset.startswith("cifar"):
        overrides.append(f"dataset.root={cifar_root}")
    if dataset == "image_folder":
        overrides += [f"dataset.root={image_root}", "recipe.drop_last=true"]
    if dataset == "digits":
        overrides += ["dataset.train_size=64"]
    assert check(compose(*overrides)) == []


@pytest.mark.parametrize("distiller", choices("distiller"))
def test_every_method_label_free_and_in_both_directions(distiller: str, compose: Compose) -> None:
    pairs = (("resnet8", "resnet20"), ("resnet20", "resnet8"))
    for (teacher, student), alignment in zip(pairs, ("none", "gda"), strict=True):
        config = compose(
            f"distiller={distiller}",
            f"alignment={alignment}",
            "ground_truth=teacher",
            f"teacher={teacher}",
            f"student={student}",
        )
        assert check(config) == []
        assert config["ground_truth"]["_target_"] == "gda.distillers.ground_truth.TeacherTargets"


def keys(node: Any, prefix: str = "") -> set[str]:
    if not isinstance(node, dict):
        return {prefix}
    return {prefix}.union(*(keys(value, f"{prefix}.{key}") for key, value in node.items()))


def composed(group: str, compose: Compose, cifar: Path, images: Path) -> dict[str, Any]:
    every = {}
    for choice in choices(group):
        every[choice] = compose(f"{group}={choice}", *needed(group, choice, cifar, images))[group]
    return every


@pytest.mark.parametrize("group", ["alignment", "tracking", "trainer"])
def test_all_choices_of_these_groups_have_the_same_keys(
    group: str, compose: Compose, cifar_root: Path, image_root: Path
) -> None:
    trees = {choice: keys(node) for choice, node in composed(group, compose, cifar_root, image_root).items()}
    first = next(iter(trees.values()))
    assert {choice: tree ^ first for choice, tree in trees.items() if tree != first} == {}


@pytest.mark.parametrize(
    ("group", "swept"),
    [
        ("dataset", {"name", "train_size", "validation", "split_seed", "mean", "std"}),
        ("teacher", {"name", "checkpoint", "checkpoint_select", "seed"}),
        ("student", {"name"}),
        ("distiller", {"name", "ground_truth_weight", "terms"}),
        ("ground_truth", {"name"}),
        ("task", {"name"}),
        (
            "recipe",
            {
                *("name", "epochs", "batch_size", "evaluation_batch_size", "drop_last", "label_smoothing"),
                *("validation", "statistics", "lr", "lr_by_model", "optimizer", "decay_norm_and_bias"),
                *("gradient_clip", "schedule", "train_transforms", "test_transforms"),
            },
        ),
    ],
)
def test_keys_that_a_sweep_touches_are_in_every_choice(
    group: str, swept: set[str], compose: Compose, cifar_root: Path, image_root: Path
) -> None:
    nodes = composed(group, compose, cifar_root, image_root)
    assert {choice: swept - node.keys() for choice, node in nodes.items() if swept - node.keys()} == {}


def test_groups_that_may_be_empty_have_a_none() -> None:
    for group in ("teacher", "alignment", "tracking", "experiment", "sweep"):
        assert "none" in choices(group)


def test_teachers_and_students_are_the_same_models() -> None:
    assert choices("student") == choices("model")
    assert sorted({*choices("model"), "none"}) == choices("teacher")


def test_grids_name_only_what_exists() -> None:
    for name in choices("sweep"):
        grid = OmegaConf.to_container(OmegaConf.load(CONF / "sweep" / f"{name}.yaml"))
        if not grid:
            continue
        assert isinstance(grid, dict)
        assert grid["hydra"]["mode"] == "MULTIRUN"
        params = grid["hydra"]["sweeper"]["params"]
        assert "seed" in params
        assert scan([f"{key}={value}" for key, value in params.items()], [CONF]) == []


def test_a_preset_never_chooses_a_launcher_or_a_seed() -> None:
    for name in choices("experiment"):
        preset = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / f"{name}.yaml")) or {}
        assert isinstance(preset, dict)
        assert not {"hydra", "cluster", "seed", "runs", "trainer", "tracking"} & preset.keys()
        for default in preset.get("defaults", []):
            assert not {"override /cluster", "override /hydra/launcher"} & set(default)
