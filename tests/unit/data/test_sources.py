"""Digits and CIFAR, and what all sources have in common: facts before loading, shares, problems."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from gda.data.cifar import CIFAR10, CIFAR100
from gda.data.digits import Digits
from gda.data.source import DatasetFacts, ImageSource
from gda.errors import UserError

FLAT: dict[str, Any] = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


def digits(**options: Any) -> Digits:
    return Digits(name="digits", **FLAT, **options)


def assert_facts_hold(source: ImageSource) -> None:
    facts, loaded = source.facts(), source.load()
    assert facts.classes == len(loaded.classes)
    assert facts.train_size == len(loaded.train)
    assert facts.validation_size == (len(loaded.validation) if loaded.validation else 0)
    assert facts.test_size == len(loaded.test)
    for split in (loaded.train, loaded.validation, loaded.test):
        if split is not None:
            assert split.images.shape[1:] == (3, facts.image_size, facts.image_size)
            assert split.targets.unique().tolist() == list(range(facts.classes))


def test_digits_are_all_there() -> None:
    loaded = digits().load()
    assert len(loaded.train) + len(loaded.test) == 1797
    assert len(loaded.test) >= 900
    assert loaded.classes == tuple("0123456789")
    assert loaded.mean == (0.5, 0.5, 0.5)
    for images in (loaded.train.images, loaded.test.images):
        assert torch.equal(images[:, 0], images[:, 1])
        assert torch.equal(images[:, 0], images[:, 2])
    assert loaded.train.images.max() == 255


@pytest.mark.parametrize(
    "options",
    [{}, {"validation": 0.2}, {"validation": 0.1, "train_size": 100}, {"train_size": 10}, {"image_size": 8}],
)
def test_digits_facts_hold(options: dict[str, Any]) -> None:
    assert_facts_hold(digits(**options))


def test_digits_at_their_own_size_are_the_original_pixels() -> None:
    from sklearn.datasets import load_digits

    loaded = digits(image_size=8).load()
    originals = load_digits().images
    total = loaded.train.images[:, 0].double().sum() + loaded.test.images[:, 0].double().sum()
    assert total.item() == pytest.approx((originals * 255 / 16).sum(), rel=1e-3)


def test_the_test_images_stay_whatever_is_held_out() -> None:
    one = digits().load()
    other = digits(validation=0.3, split_seed=5, train_size=50).load()
    assert torch.equal(one.test.images, other.test.images)


def test_the_held_out_images_do_not_depend_on_the_training_size() -> None:
    one, other = (digits(validation=0.2, train_size=size).load().validation for size in (None, 50))
    assert one is not None
    assert other is not None
    assert torch.equal(one.images, other.images)
    different = digits(validation=0.2, split_seed=1).load().validation
    assert different is not None
    assert not torch.equal(one.images, different.images)


def test_shares_that_do_not_fit_are_problems_before_loading() -> None:
    assert digits().problems() == []
    assert "897" in digits(train_size=898).problems()[0]
    assert "left after holding out 179" in digits(train_size=800, validation=0.2).problems()[0]
    assert "10 (classes)" in digits(train_size=9).problems()[0]
    assert "leaves 9 training images" in digits(validation=0.99).problems()[0]
    wrong = Digits(name="digits", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.0), train_size=2000)
    assert len(wrong.problems()) == 2
    with pytest.raises(UserError, match=r"data set digits: .*std.*train_size"):
        wrong.load()


def write_cifar(
    root: Path, source: type[CIFAR10], monkeypatch: pytest.MonkeyPatch, per_file: int = 4
) -> np.ndarray:
    """Writes tiny files in the original layout, and their checksums into torchvision's table."""
    folder = root / source.FOLDER
    folder.mkdir(parents=True)
    hundred = source is CIFAR100
    pixels = np.random.default_rng(0).integers(
        0, 256, (len(source.FILES) - 1, per_file, 3072), dtype=np.uint8
    )
    checksums = {}
    for number, name in enumerate(source.FILES):
        if name == source.FILES[-1]:
            key = "fine_label_names" if hundred else "label_names"
            content: dict[str, Any] = {key: [f"class{k}" for k in range(source.CLASSES)]}
        else:
            labels = [(number + k) % source.CLASSES for k in range(per_file)]
            content = {"data": pixels[number], "fine_labels" if hundred else "labels": labels}
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        checksums[name] = hashlib.md5(data).hexdigest()
    library = getattr(torchvision.datasets, source.SOURCE)
    for table in ("train_list", "test_list"):
        monkeypatch.setattr(library, table, [[name, checksums[name]] for name, _ in getattr(library, table)])
    monkeypatch.setattr(library, "meta", {**library.meta, "md5": checksums[source.FILES[-1]]})
    return pixels


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100])
def test_cifar_reads_the_original_layout(
    source: type[CIFAR10], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = write_cifar(tmp_path, source, monkeypatch)
    loaded = source(name="cifar", root=str(tmp_path), **FLAT).load()
    assert len(loaded.classes) == source.CLASSES
    assert len(loaded.train) == 4 * (len(source.FILES) - 2)
    assert len(loaded.test) == 4
    assert loaded.train.images.is_contiguous()
    assert np.array_equal(loaded.train.images[:4].reshape(4, -1).numpy(), pixels[0])
    assert loaded.train.targets[:4].tolist() == [0, 1, 2, 3]


def test_cifar_facts_need_no_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, CIFAR100, monkeypatch)
    source = CIFAR100(name="cifar100", root=str(tmp_path), validation=0.1, **FLAT)
    assert source.facts() == DatasetFacts(100, 32, 45_000, 5_000, 10_000)


def test_missing_cifar_files_are_named_with_the_way_out(tmp_path: Path) -> None:
    source = CIFAR100(name="cifar100", root=str(tmp_path), **FLAT)
    (problem,) = source.problems()
    assert str(tmp_path / "cifar-100-python") in problem
    assert "dataset.download=true" in problem
    with pytest.raises(UserError, match="download=true"):
        source.facts()
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "train").touch()
    assert "test, meta missing" in source.problems()[0]
    assert CIFAR100(name="cifar100", root=str(tmp_path), download=True, **FLAT).problems() == []


def test_damaged_cifar_files_are_an_error_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path, CIFAR10, monkeypatch)
    (tmp_path / CIFAR10.FOLDER / "data_batch_3").write_bytes(b"damaged")
    with pytest.raises(UserError, match="damaged, remove"):
        CIFAR10(name="cifar10", root=str(tmp_path), **FLAT).load()
