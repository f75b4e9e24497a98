"""Every file in conf/ composes, resolves and passes the whole-config check."""

from collections.abc import Callable
from functools import cache
from itertools import product, takewhile
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from gda.config.check import check
from gda.config.identity import label_of
from gda.config.overrides import scan

CONF = Path(__file__).resolve().parents[2] / "conf"
Compose = Callable[..., dict[str, Any]]


def choices(group: str) -> list[str]:
    files = (file.relative_to(CONF / group) for file in (CONF / group).rglob("*.yaml"))
    return sorted(str(file.with_suffix("")) for file in files if not file.name.startswith("_"))


@cache
def plain(file: str) -> dict[str, Any]:
    """A file of `conf/` as it is written."""
    node = OmegaConf.to_container(OmegaConf.load(CONF / f"{file}.yaml"))
    return {str(key): value for key, value in node.items()} if isinstance(node, dict) else {}


BEHIND = ("model", "_shared", "augmentation")  # parts of choices, not choices
GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name not in BEHIND)
SINGLE = [(group, choice) for group in GROUPS if group != "experiment" for choice in choices(group)]
EXPERIMENTS = choices("experiment")
PUBLISHED = [name for name in EXPERIMENTS if name.partition("/")[0] not in ("none", "demo", "few_shot")]
PAIRS = sorted({name.rpartition("/")[2] for name in PUBLISHED})

# Few-shot data sets and recipes go with each other, and with no classification. Here they are tried on the
# digits, which are always there; tests/conf/test_few_shot_datasets.py makes the files of the others.
FEW_SHOT_DATA = [
    name
    for name in choices("dataset")
    if plain(f"dataset/{name}")["_target_"].startswith("gda.data.few_shot.")
]
WITH_FILES = [name for name in FEW_SHOT_DATA if "root" in plain(f"dataset/{name}")]
FEW_SHOT_RECIPES = [
    name
    for name in choices("recipe")
    if {"/_shared@_here_": "few_shot_recipe"} in plain(f"recipe/{name}").get("defaults", [])
]
CLASSIFIER = {
    "dataset": "digits_few_shot",
    "recipe": "digits_few_shot_classifier",
    "task": "few_shot_classifier",
}
META = {
    "dataset": "digits_few_shot",
    "recipe": "digits_few_shot_meta",
    "task": "meta_baseline",
    "encoder": "classifier",
    "recipe@encoder.recipe": "digits_few_shot_classifier",
}


def few_shot(group: str, choice: str) -> list[str]:
    """The few-shot run that a choice is part of; nothing for one of another kind."""
    stages = {"few_shot_classifier": CLASSIFIER, "meta_baseline": META, "few_shot_test": META}
    kinds = {
        "dataset": CLASSIFIER if choice in FEW_SHOT_DATA else {},
        "recipe": {} if choice not in FEW_SHOT_RECIPES else META if choice.endswith("_meta") else CLASSIFIER,
        "task": stages.get(choice, {}),
        "encoder": META if choice == "classifier" else {},
    }
    extra = [f"{key}={value}" for key, value in kinds.get(group, {}).items() if key != group]
    if group == "recipe" and choice.startswith("few_shot"):
        extra.append("dataset.image_size=80")  # what the published crops come out with
    return extra


def needed(group: str, choice: str, cifar: Path, images: Path) -> list[str]:
    """Whatever a choice can't do without."""
    extra = few_shot(group, choice)
    if group == "dataset" and choice in WITH_FILES:
        extra.append(f"dataset.root={images}")
    if extra:
        return extra
    reads_cifar = choice in PUBLISHED or (group == "dataset" and choice.startswith("cifar"))
    extra = [f"dataset.root={cifar}"] if reads_cifar else []
    if (group, choice) == ("dataset", "image_folder"):
        extra = [f"dataset.root={images}", "dataset.image_size=8"]
    if group == "recipe" and choice != "digits":
        extra = ["dataset=cifar100", f"dataset.root={cifar}"]
    if (group, choice) == ("teacher", "none"):
        extra = ["distiller=vanilla", "alignment=none"]
    if choice.endswith("_bottle") or choice == "convnet4":
        extra = ["dataset.image_size=32"]  # they halve images four times
    if choice == "convnet4":
        extra.append(f"{group}.image_size=32")
    if choice == "timm":
        extra = [f"{group}.name=resnet10t"]
    return extra


@pytest.mark.parametrize(("group", "choice"), SINGLE)
def test_every_choice_composes_and_checks(
    group: str, choice: str, compose: Compose, cifar_root: Path, image_root: Path
) -> None:
    overrides = [f"{group}={choice}", *needed(group, choice, cifar_root, image_root)]
    assert scan(overrides, [CONF]) == []
    faults = check(compose(*overrides))
    if group == "dataset" and choice in WITH_FILES:
        assert [fault.where for fault in faults] == ["dataset"]
        assert str(image_root) in faults[0].what  # which holds other files
    else:
        assert faults == []


# All presets of a pair in one test: its models are built, and asked for their features, once.
@pytest.mark.parametrize("pair", [*PAIRS, "none", "demo"])
def test_every_preset_composes_checks_and_runs_what_its_name_says(
    pair: str, compose: Compose, cifar_root: Path, image_root: Path
) -> None:
    names = [name for name in EXPERIMENTS if pair in (name.rpartition("/")[2], name.partition("/")[0])]
    assert names
    faults, misnamed = {}, {}
    for name in names:
        assert scan([f"experiment={name}"], [CONF]) == []
        config = compose(f"experiment={name}", *needed("experiment", name, cifar_root, image_root))
        faults[name] = check(config)
        if name in PUBLISHED:
            method = "gda" if config["alignment"]["name"] == "gda" else label_of(config).replace("+", "_")
            runs = f"{method}/{config['teacher']['name']}_{config['student']['name']}"
            misnamed |= {name: runs} if runs != name else {}
    assert {name: found for name, found in faults.items() if found} == {}
    assert misnamed == {}


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_without_the_data_only_the_folder_is_missing(dataset: str, compose: Compose, tmp_path: Path) -> None:
    (fault,) = check(compose(f"dataset={dataset}", f"dataset.root={tmp_path}", f"runs={tmp_path}"))
    assert fault.where == "dataset"
    assert "dataset.root" in fault.what
    assert "dataset.download=true" in fault.what


DATA = [name for name in choices("dataset") if name not in FEW_SHOT_DATA]
RECIPES = [name for name in choices("recipe") if name not in FEW_SHOT_RECIPES]


@pytest.mark.parametrize(("dataset", "recipe"), list(product(DATA, RECIPES)))
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
        ("dataset", {"name", "validation", "split_seed", "mean", "std"}),
        ("teacher", {"name", "checkpoint", "checkpoint_select", "seed"}),
        ("student", {"name"}),
        ("distiller", {"name", "ground_truth_weight", "terms"}),
        ("ground_truth", {"name"}),
        ("encoder", {"name", "checkpoint", "checkpoint_select", "seed"}),
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
    if group == "dataset":
        kinds = {"train_size": DATA, "base_test": FEW_SHOT_DATA, "train_image_size": FEW_SHOT_DATA}
        for key, kind in kinds.items():
            assert sorted(choice for choice, node in nodes.items() if key in node) == kind
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
    for name in EXPERIMENTS:
        preset = plain(f"experiment/{name}")
        assert not {"hydra", "cluster", "seed", "runs", "trainer", "tracking"} & preset.keys()
        for default in preset.get("defaults", []):
            assert not {"override /cluster", "override /hydra/launcher"} & set(default)


def repeated(node: Any, base: Any, path: str) -> list[str]:
    """Dotted paths of the values in `node` that `base` has already."""
    if isinstance(node, dict):
        known = base if isinstance(base, dict) else {}
        parts = [repeated(node[key], known[key], f"{path}.{key}") for key in node if key in known]
        return [each for part in parts for each in part]
    return [path] if node == base else []


def test_a_preset_says_only_what_its_choices_do_not() -> None:
    found = []
    for name in EXPERIMENTS:
        preset = plain(f"experiment/{name}")
        for default in preset.get("defaults", []):
            if isinstance(default, str):
                continue  # a part that presets share
            ((group, choice),) = default.items()
            group, _, package = group.removeprefix("override /").partition("@")
            own = preset
            for key in (package or group).split("."):
                own = own.get(key, {})
            found += repeated(own, plain(f"{group}/{choice}"), f"{name}: {package or group}")
    assert found == []


def test_a_published_preset_opens_with_its_source_and_its_command() -> None:
    for name in PUBLISHED:
        lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
        comments = list(takewhile(lambda line: line.startswith("#"), lines))
        assert comments[0] == "# @package _global_", name
        assert any(line.startswith("# Source: repository ") for line in comments), name
        assert f"# Command: python launch.py experiment={name} dataset.download=true" in comments, name
        assert any(line.startswith("# Published: ") for line in comments), name
