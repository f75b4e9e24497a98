"""miniImageNet and tieredImageNet files against golden figures of the published readers."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gda.data.few_shot.mini_imagenet import MiniImageNet
from gda.data.few_shot.source import FewShotDataset
from gda.data.few_shot.tiered_imagenet import TieredImageNet
from gda.data.pipeline import Pipeline

GOLDEN = json.loads((Path(__file__).parent / "golden" / "few_shot_data_and_schedule.json").read_text())
READING = GOLDEN["mini_imagenet_reading"]
SUBSET = GOLDEN["subset_of_351_classes"]
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
OURS = {
    "train": "base",
    "train_phase_val": "base_validation",
    "val": "validation",
    "test": "test",
}


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> FewShotDataset:
    root = tmp_path_factory.mktemp("mini")
    pixels = np.random.RandomState(3).randint(0, 256, (6, 84, 84, 3)).astype(np.uint8)
    files = [READING[split]["file"] for split in OURS]
    for file in (*files, "miniImageNet_category_split_train_phase_test.pickle"):  # which has no figures
        content = {"data": pixels, "labels": READING["label_given"]}
        (root / file).write_bytes(pickle.dumps(content, protocol=2))
    # The five files hold the same classes.
    return MiniImageNet(name="mini_imagenet", root=str(root), image_size=80, force=True, **IMAGENET).load()


def assert_digest(found: Tensor, golden: dict[str, Any], tolerance: float) -> None:
    """Compares as the golden file describes; the sums of n values within n times the tolerance."""
    values = found.double().flatten()
    steps = torch.arange(len(values), dtype=torch.float64)
    assert list(found.shape) == golden["shape"]
    assert (values[golden["sample_index"]] - torch.tensor(golden["sample"])).abs().max() <= tolerance
    assert abs(values.abs().max().item() - golden["max_abs"]) <= tolerance
    assert abs(values.sum().item() - golden["sum"]) <= tolerance * len(values)
    assert abs(values.abs().sum().item() - golden["abs_sum"]) <= tolerance * len(values)
    probe = (values * torch.cos(0.7 * steps + 0.3)).sum().item()
    assert abs(probe - golden["probe_dot"]) <= tolerance * len(values)
    assert math.isclose(values.norm().item(), golden["l2"], rel_tol=10 * tolerance)


@pytest.mark.parametrize("split", OURS)
def test_labels_are_shifted_to_0_as_published(mini: FewShotDataset, split: str) -> None:
    loaded = getattr(mini, OURS[split])
    of_base = OURS[split].startswith("base")
    classes = mini.base_classes if of_base else getattr(mini, f"{OURS[split]}_classes")
    assert loaded.targets.tolist() == READING[split]["labels"]
    assert len(classes) == READING[split]["n_classes"]


@pytest.mark.parametrize("split", OURS)
@pytest.mark.parametrize("number", [0, 5])
def test_normalised_images_are_the_published_ones(mini: FewShotDataset, split: str, number: int) -> None:
    loaded = getattr(mini, OURS[split])
    pipeline = Pipeline({}, mini.mean, mini.std)
    (image,) = pipeline(loaded.images[number : number + 1], torch.Generator())
    assert_digest(image, READING[split][f"image{number}"], 3e-7)  # float32 in another order


@pytest.mark.parametrize("split", OURS)
def test_pixels_resized_from_84_to_80_are_the_published_ones(mini: FewShotDataset, split: str) -> None:
    pixels = getattr(mini, OURS[split]).images[0]
    # The published figure has been normalised and back. One pixel off by one level moves the sum by 4e-3.
    assert_digest(pixels / 255, READING[split]["unnormalised_image0"], 3e-8)


def write_tiered(root: Path, labels: list[int]) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 4, 3), dtype=np.uint8)
    for split, first in (("train", 0), ("val", 1000), ("test", 2000)):
        np.savez(root / f"{split}_images.npz", images=pixels)
        shifted = [first + label for label in labels]
        (root / f"{split}_labels.pkl").write_bytes(pickle.dumps({"labels": shifted}))
    return pixels


def tiered(root: Path, **options: Any) -> FewShotDataset:
    return TieredImageNet(name="tiered", root=str(root), image_size=4, **options, **IMAGENET).load()


def test_the_mini_variant_takes_the_published_classes_and_images(tmp_path: Path) -> None:
    source = SUBSET["n_source_classes"]
    pixels = write_tiered(tmp_path, [number for number in range(source) for _ in range(2)])
    base = tiered(tmp_path, mini=True)
    assert base.base_classes == tuple(map(str, SUBSET["chosen_source_class_by_new_label"]))
    assert len(base.base_classes) == SUBSET["n_classes"]
    assert base.base.targets.bincount().tolist() == SUBSET["images_per_new_label"]
    assert len(base.base) == SUBSET["n_images"]
    first = pixels[SUBSET["first_source_indices"]][..., ::-1]  # the file has blue first
    assert np.array_equal(base.base.images[: len(first)].permute(0, 2, 3, 1).numpy(), first)


def test_the_mini_variant_leaves_numpys_global_generator_alone(tmp_path: Path) -> None:
    write_tiered(tmp_path, list(range(64)))
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    tiered(tmp_path, mini=True)
    assert np.random.rand() == expected  # the published reader seeds it with 0


def test_the_mini_variant_takes_the_first_600_images_of_a_class(tmp_path: Path) -> None:
    pixels = write_tiered(tmp_path, [*range(64), *[6] * 700])
    base = tiered(tmp_path, mini=True).base
    counts = base.targets.bincount()
    assert counts.max() == 600
    assert counts.sum() == 63 + 600
    largest = base.images[base.targets == counts.argmax()]
    expected = np.concatenate([pixels[6:7], pixels[64:663]])[..., ::-1]
    assert np.array_equal(largest.permute(0, 2, 3, 1).numpy(), expected)


def test_without_the_variant_all_classes_stay(tmp_path: Path) -> None:
    write_tiered(tmp_path, [number for number in range(351) for _ in range(2)])
    whole = tiered(tmp_path)
    golden = SUBSET["without_mini"]
    assert len(whole.base_classes) == golden["n_classes"]
    assert len(whole.base) == golden["n_images"]
    assert whole.base.targets[:5].tolist() == golden["first_labels"]
