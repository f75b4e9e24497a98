"""One's own image folders: what is read, and every fault by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image

from gda.data.image_folder import ImageFolder
from gda.errors import UserError


def write_image(
    path: Path, width: int = 12, height: int = 12, seed: int = 0, mode: str = "RGB"
) -> Image.Image:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(path)
    return image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("train", 4), ("test", 2)):
        for label in ("cat", "dog"):
            for number in range(count):
                write_image(tmp_path / split / label / f"{number}.png", seed=number)
    return tmp_path


def folder(root: Path, **options: Any) -> ImageFolder:
    options = {"image_size": 12, **options}
    return ImageFolder(name="mine", root=str(root), mean=(0.5,) * 3, std=(0.5,) * 3, **options)


def test_images_of_the_right_size_are_untouched(root: Path) -> None:
    loaded = folder(root).load()
    assert loaded.classes == ("cat", "dog")
    assert loaded.train.targets.tolist() == [0] * 4 + [1] * 4
    expected = np.array(Image.open(root / "train" / "cat" / "2.png"))
    assert np.array_equal(loaded.train.images[2].permute(1, 2, 0).numpy(), expected)


def test_facts_hold(root: Path) -> None:
    source = folder(root, validation=0.25)
    facts, loaded = source.facts(), source.load()
    assert loaded.validation is not None
    assert (facts.classes, facts.image_size) == (2, 12)
    assert (facts.train_size, facts.validation_size, facts.test_size) == (6, 2, 4)
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (6, 2, 4)


@pytest.mark.parametrize(("width", "height"), [(30, 20), (20, 31), (9, 8)])
def test_other_sizes_are_resized_and_cropped_once(root: Path, width: int, height: int) -> None:
    image = write_image(root / "train" / "cat" / "0.png", width, height)
    expected = TF.center_crop(TF.resize(image, 12), [12, 12])
    assert np.array_equal(folder(root).load().train.images[0].permute(1, 2, 0).numpy(), np.array(expected))


def test_grey_and_palette_images_nested_folders_and_hidden_files(root: Path) -> None:
    write_image(root / "train" / "cat" / "deep" / "grey.PNG", mode="L")
    write_image(root / "train" / "cat" / "palette.png", mode="P")
    write_image(root / "train" / ".hidden" / "0.png")
    write_image(root / "train" / "cat" / ".trash" / "0.png")
    (root / "train" / "cat" / "._0.png").write_bytes(b"not an image")
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    loaded = folder(root).load()
    assert loaded.train.targets.bincount().tolist() == [6, 4]
    grey = loaded.train.images[4]  # after 0 to 3
    assert torch.equal(grey[0], grey[1])


def test_val_stands_in_for_test(root: Path) -> None:
    (root / "test").rename(root / "val")
    assert folder(root).facts().test_size == 4


def test_missing_folders_are_named_all_at_once(tmp_path: Path) -> None:
    (problem,) = folder(tmp_path / "nowhere").problems()
    assert str(tmp_path / "nowhere") in problem
    assert len(folder(tmp_path).problems()) == 2
    with pytest.raises(UserError, match=r"no folder train.*no folder test"):
        folder(tmp_path).load()


def test_empty_and_differing_classes_are_named_all_at_once(root: Path) -> None:
    (root / "train" / "empty").mkdir()
    write_image(root / "test" / "bird" / "0.png")
    problems = " ".join(folder(root).problems())
    assert "no images in these class folders" in problems
    assert "classes that only train has: empty" in problems
    assert "classes that only test has: bird" in problems


def test_a_split_without_classes_is_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    assert [problem for problem in folder(tmp_path).problems() if "no class folders" in problem] != []


def test_unreadable_images_are_named_all_at_once(root: Path) -> None:
    whole = (root / "train" / "cat" / "1.png").read_bytes()
    (root / "train" / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    (root / "test" / "dog" / "0.png").write_bytes(b"not an image")
    with pytest.raises(UserError) as error:
        folder(root).load()
    assert "2 images can't be read" in str(error.value)
    assert str(root / "train" / "cat" / "1.png") in str(error.value)
    assert str(root / "test" / "dog" / "0.png") in str(error.value)


def test_too_much_memory_is_refused_before_reading(root: Path) -> None:
    source = folder(root, image_size=1024, max_memory_gib=0.01)
    (problem,) = source.problems()
    assert "0.04 GiB" in problem  # 12 images of 3 MiB
    assert "dataset.max_memory_gib=0.01" in problem
    with pytest.raises(UserError, match="max_memory_gib"):
        source.load()


def test_a_class_too_small_to_divide_is_a_problem(root: Path) -> None:
    for number in (1, 2, 3):
        (root / "train" / "dog" / f"{number}.png").unlink()
    assert folder(root).problems() == []
    assert "two training images of every class" in folder(root, validation=0.2).problems()[0]
