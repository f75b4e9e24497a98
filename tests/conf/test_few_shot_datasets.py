"""The files of conf/dataset/ for few-shot learning, each with tiny files in the layout that it reads."""

import json
import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from gda.config.check import check
from gda.config.signature import construct, locate
from gda.data.few_shot.source import FewShotSource

CONF = Path(__file__).resolve().parents[2] / "conf"
Compose = Callable[..., dict[str, Any]]

CLASSES = 5
IMAGES = 20  # of a class: five shots and 15 queries
SPLITS = {"base": range(CLASSES), "val": range(5, 10), "novel": range(10, 15)}

DATA = {  # the recipes that go with each, by the first part of their names
    "digits_few_shot": "digits_few_shot",
    "mini_imagenet": "few_shot",
    "omniglot": "omniglot",
    "split_folder": "few_shot",
    "tiered_imagenet": "few_shot",
}


def write_mini_imagenet(root: Path) -> None:
    parts = {
        **{"train_phase_train": ("base", IMAGES), "train_phase_val": ("base", 1)},
        **{"train_phase_test": ("base", 1), "val": ("val", IMAGES), "test": ("novel", IMAGES)},
    }
    for part, (split, count) in parts.items():
        labels = [label for label in SPLITS[split] for _ in range(count)]
        content = {"data": np.zeros((len(labels), 84, 84, 3), np.uint8), "labels": labels}
        (root / f"miniImageNet_category_split_{part}.pickle").write_bytes(pickle.dumps(content, protocol=2))


def write_tiered_imagenet(root: Path) -> None:
    for part, split in (("train", "base"), ("val", "val"), ("test", "novel")):
        labels = [label for label in SPLITS[split] for _ in range(IMAGES)]
        pixels = np.zeros((len(labels), 84, 84, 3), np.uint8)
        np.savez_compressed(root / f"{part}_images.npz", images=pixels)
        (root / f"{part}_labels.pkl").write_bytes(pickle.dumps({"labels": labels}))


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(IMAGES):
        Image.new("L", (8, 8), number).save(folder / f"{number:02}.png")


def write_split_folder(root: Path) -> None:
    names = {split: [f"class{label}" for label in labels] for split, labels in SPLITS.items()}
    (root / "split.json").write_text(json.dumps(names))
    for name in (name for each in names.values() for name in each):
        write_images(root / "train" / name)


def write_omniglot(root: Path) -> None:
    for part, alphabets in (("background", range(5 + CLASSES)), ("evaluation", range(10, 15))):
        for alphabet in alphabets:
            write_images(root / "omniglot-py" / f"images_{part}" / f"Alphabet{alphabet}" / "character01")


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for write in (write_mini_imagenet, write_tiered_imagenet, write_split_folder, write_omniglot):
        name = write.__name__.removeprefix("write_")
        made[name] = tmp_path_factory.mktemp(name)
        write(made[name])
    return made


@pytest.fixture
def composed(compose: Compose, roots: dict[str, Path]) -> Compose:
    """Composes a run of a stage on a data set, with the files that it reads."""

    def of(dataset: str, stage: str, *overrides: str) -> dict[str, Any]:
        recipes = DATA[dataset]
        chosen = [f"dataset={dataset}", f"recipe={recipes}_{stage}"]
        if dataset in roots:
            chosen.append(f"dataset.root={roots[dataset]}")
        if stage == "meta":
            chosen += ["task=meta_baseline", "encoder=classifier"]
            chosen.append(f"recipe@encoder.recipe={recipes}_classifier")
        else:
            chosen.append("task=few_shot_classifier")
        return compose(*chosen, *overrides)

    return of


def node_of(dataset: str) -> dict[str, Any]:
    node: dict[str, Any] = yaml.safe_load((CONF / "dataset" / f"{dataset}.yaml").read_text())
    return node


def source_of(dataset: str) -> Any:
    return locate(node_of(dataset)["_target_"])


def test_all_files_are_tried_here() -> None:
    names = sorted(file.stem for file in (CONF / "dataset").glob("*.yaml"))
    assert [name for name in names if issubclass(source_of(name), FewShotSource)] == list(DATA)


@pytest.mark.parametrize("dataset", DATA)
def test_every_option_of_a_data_set_is_in_its_file_and_no_other(dataset: str) -> None:
    node = node_of(dataset)
    assert node.keys() - {"_target_"} == {each.name for each in fields(source_of(dataset))}
    assert node["name"] == dataset


@pytest.mark.parametrize("stage", ["classifier", "meta"])
@pytest.mark.parametrize("dataset", DATA)
def test_a_data_set_with_its_files_goes_with_its_recipes(dataset: str, stage: str, composed: Compose) -> None:
    assert check(composed(dataset, stage)) == []


@pytest.mark.parametrize(
    ("dataset", "train_size", "size", "base", "validation"),
    [
        ("digits_few_shot", 16, 16, 5, 5),
        ("mini_imagenet", 84, 80, CLASSES, CLASSES),
        ("omniglot", 28, 28, CLASSES, CLASSES),
        ("split_folder", 80, 80, CLASSES, CLASSES),
        ("tiered_imagenet", 84, 80, CLASSES, CLASSES),
    ],
)
def test_sizes_and_classes_are_what_the_files_say(
    dataset: str, train_size: int, size: int, base: int, validation: int, composed: Compose
) -> None:
    facts = construct(composed(dataset, "classifier")["dataset"]).facts()
    assert facts.validation is not None
    assert (facts.image_size, facts.evaluation_image_size) == (train_size, size)
    assert (facts.base.classes, facts.validation.classes, facts.test.classes) == (base, validation, CLASSES)


def test_base_images_are_held_out_for_the_accuracy_on_base_classes(composed: Compose) -> None:
    held = {name: construct(composed(name, "classifier")["dataset"]).facts().base_test for name in DATA}
    counts = {name: None if split is None else split.smallest_class for name, split in held.items()}
    assert counts["mini_imagenet"] == 1  # a file of its own
    assert counts["omniglot"] == 2  # a tenth of twenty
    assert counts["digits_few_shot"] is not None
    assert counts["split_folder"] is None
    assert counts["tiered_imagenet"] is None


@pytest.mark.parametrize("augmentation", ["crop", "none", "resize"])
@pytest.mark.parametrize("stage", ["classifier", "meta"])
def test_every_published_augmentation_fits_the_published_images(
    augmentation: str, stage: str, composed: Compose
) -> None:
    for dataset in ("mini_imagenet", "tiered_imagenet"):
        config = composed(dataset, stage, f"augmentation@recipe.train_transforms={augmentation}")
        assert check(config) == []


@pytest.mark.parametrize("augmentation", ["as_is", "shift"])
def test_every_augmentation_of_small_images_keeps_their_size(augmentation: str, composed: Compose) -> None:
    for dataset in ("digits_few_shot", "omniglot"):
        config = composed(dataset, "classifier", f"augmentation@recipe.train_transforms={augmentation}")
        assert check(config) == []


def test_all_augmentations_are_tried_here() -> None:
    found = sorted(file.stem for file in (CONF / "augmentation").glob("*.yaml"))
    assert found == ["as_is", "crop", "none", "resize", "shift"]
