"""Few-shot data sets in their real layouts: what is read, held out and cached, and every fault by name."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import torchvision.transforms.functional as TF
from PIL import Image

from gda.data.few_shot.digits import DigitsFewShot
from gda.data.few_shot.mini_imagenet import MiniImageNet
from gda.data.few_shot.omniglot import Omniglot
from gda.data.few_shot.source import FewShotDataset, FewShotSource
from gda.data.few_shot.split_folder import SplitFolder
from gda.data.few_shot.tiered_imagenet import TieredImageNet
from gda.errors import UserError

FLAT: dict[str, Any] = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
SPLITS = ("base", "base_validation", "base_test", "validation", "test")
MINI_FILES = {
    "train_phase_train": range(3),
    "train_phase_val": range(3),
    "train_phase_test": range(3),
    "val": range(3, 5),
    "test": range(5, 8),
}


def pixels_of(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def mini_file(root: Path, split: str) -> Path:
    return root / f"miniImageNet_category_split_{split}.pickle"


@pytest.fixture
def mini_root(tmp_path: Path) -> Path:
    for seed, (split, classes) in enumerate(MINI_FILES.items()):
        labels = [label for label in classes for _ in range(4)]
        content = {"data": pixels_of(len(labels), 12, seed), "labels": labels}
        mini_file(tmp_path, split).write_bytes(pickle.dumps(content, protocol=2))
    return tmp_path


def mini(root: Path, **options: Any) -> MiniImageNet:
    return MiniImageNet(name="mini", root=str(root), **FLAT, **{"image_size": 12, **options})


@pytest.fixture
def tiered_root(tmp_path: Path) -> Path:
    for seed, (split, classes) in enumerate(
        (("train", range(4)), ("val", range(4, 6)), ("test", range(6, 9)))
    ):
        labels = np.repeat(list(classes), 3)
        np.savez_compressed(tmp_path / f"{split}_images.npz", images=pixels_of(len(labels), 12, seed))
        (tmp_path / f"{split}_labels.pkl").write_bytes(pickle.dumps({"labels": labels.tolist()}))
    return tmp_path


def tiered(root: Path, **options: Any) -> TieredImageNet:
    return TieredImageNet(name="tiered", root=str(root), **FLAT, **{"image_size": 12, **options})


def write_image(path: Path, width: int = 12, height: int = 12, seed: int = 0, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder_root(tmp_path: Path) -> Path:
    split = {"base": ["cat", "ape"], "val": ["dog"], "novel": ["emu", "fox"]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    for number, name in enumerate(name for names in split.values() for name in names):
        for image in range(4):
            write_image(tmp_path / "images" / name / f"{image}.png", seed=10 * number + image)
    return tmp_path


def folder(root: Path, **options: Any) -> SplitFolder:
    return SplitFolder(name="mine", root=str(root), **FLAT, **{"image_size": 12, **options})


@pytest.fixture
def omniglot_root(tmp_path: Path) -> Path:
    for part, alphabets in (("background", "ABC"), ("evaluation", "DE")):
        for seed, alphabet in enumerate(alphabets):
            for character in ("character01", "character02"):
                for drawer in range(3):
                    path = tmp_path / part / f"{alphabet}.{character}" / f"{drawer:02}.png"
                    write_image(path, 21, 21, 10 * seed + drawer, mode="1")
    return tmp_path


def omniglot(root: Path, **options: Any) -> Omniglot:
    return Omniglot(name="omniglot", root=str(root), **FLAT, **{"validation_alphabets": 1, **options})


def digits(**options: Any) -> DigitsFewShot:
    return DigitsFewShot(name="digits_few_shot", **FLAT, **options)


def assert_facts_hold(source: FewShotSource) -> FewShotDataset:
    assert source.problems() == []
    facts, loaded = source.facts(), source.load()
    names = dict.fromkeys(SPLITS[:3], loaded.base_classes)
    names |= {"validation": loaded.validation_classes, "test": loaded.test_classes}
    for name in SPLITS:
        split, known = getattr(loaded, name), getattr(facts, name)
        assert (split is None) == (known is None)
        if split is not None:
            counts = split.targets.bincount(minlength=known.classes)
            assert len(names[name]) == known.classes == len(counts)
            assert (len(split), int(counts.min())) == (known.images, known.smallest_class)
            assert split.images.shape[1:] == (3, known.image_size, known.image_size)
    return loaded


def rows_of(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_mini_imagenet_facts_hold(mini_root: Path) -> None:
    loaded = assert_facts_hold(mini(mini_root))
    assert loaded.base_classes == ("0", "1", "2")
    assert loaded.validation_classes == ("3", "4")
    assert loaded.test_classes == ("5", "6", "7")
    assert loaded.test.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert np.array_equal(loaded.test.images.permute(0, 2, 3, 1).numpy(), pixels_of(12, 12, 4))
    assert loaded.base_validation is not None
    assert np.array_equal(loaded.base_validation.images.permute(0, 2, 3, 1).numpy(), pixels_of(12, 12, 1))


def test_training_images_may_stay_larger_than_the_others(mini_root: Path) -> None:
    loaded = assert_facts_hold(mini(mini_root, image_size=8, train_image_size=12))
    assert loaded.base.images.shape[2:] == (12, 12)
    assert loaded.test.images.shape[2:] == (8, 8)
    assert assert_facts_hold(mini(mini_root, image_size=8)).base.images.shape[2:] == (8, 8)


def test_class_names_in_the_files_are_used(mini_root: Path) -> None:
    content = {"data": pixels_of(4, 12), "labels": [5, 5, 6, 7], "catname2label": {"n05": 5, "n07": 7}}
    mini_file(mini_root, "test").write_bytes(pickle.dumps(content))
    assert mini(mini_root).load().test_classes == ("n05", "6", "n07")


def test_missing_files_are_named(mini_root: Path, tiered_root: Path) -> None:
    mini_file(mini_root, "val").unlink()
    (tiered_root / "test_labels.pkl").unlink()
    assert f"miniImageNet_category_split_val.pickle missing in {mini_root}" in mini(mini_root).problems()[0]
    assert "test_labels.pkl missing in" in tiered(tiered_root).problems()[0]
    nowhere = str(mini_root / "nowhere")
    for source in (mini, tiered, folder, omniglot):
        (problem,) = source(Path(nowhere)).problems()
        assert nowhere in problem
        assert "set dataset.root" in problem
        with pytest.raises(UserError, match="nowhere"):
            source(Path(nowhere)).facts()


def test_other_contents_of_pickles_are_named(mini_root: Path) -> None:
    def problem(content: Any) -> str:
        mini_file(mini_root, "val").write_bytes(pickle.dumps(content))
        (found,) = mini(mini_root).problems()
        return found

    pixels = pixels_of(2, 12)
    assert "no entry 'labels'; it has 'data', 'label'" in problem({"data": pixels, "label": [3, 4]})
    assert "no entry 'data'" in problem({"labels": [3, 4]})
    assert "holds a list, not a dictionary" in problem([pixels])
    assert "2 images and 3 labels" in problem({"data": pixels, "labels": [3, 4, 4]})
    assert "'data' is no numpy array" in problem({"data": [1, 2], "labels": [3, 4]})
    assert "not uint8" in problem({"data": pixels.astype(np.float32), "labels": [3, 4]})
    assert "not uint8" in problem({"data": pixels[:, :6], "labels": [3, 4]})
    for labels in (["a", "b"], [3.5, 4], [-1, 4], [[3], [4]], [], [3, 2**40], [None, 3]):
        assert "no list of whole numbers" in problem({"data": pixels, "labels": labels})


def test_base_files_of_other_classes_are_refused(mini_root: Path) -> None:
    content = {"data": pixels_of(2, 12), "labels": [0, 3]}
    mini_file(mini_root, "train_phase_val").write_bytes(pickle.dumps(content))
    assert "other classes than" in mini(mini_root).problems()[0]


def test_shares_are_not_held_out_of_what_is_held_out_already(mini_root: Path) -> None:
    assert "validation=0.1: its files hold such images" in mini(mini_root, validation=0.1).problems()[0]


def test_damaged_and_hostile_pickles_are_problems_before_loading(mini_root: Path, tiered_root: Path) -> None:
    whole = mini_file(mini_root, "test").read_bytes()
    mini_file(mini_root, "test").write_bytes(whole[: len(whole) // 2])
    assert "it is damaged" in mini(mini_root).problems()[0]
    mini_file(mini_root, "test").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (tiered_root / "val_labels.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for source in (mini(mini_root), tiered(tiered_root)):
        assert "os.system, which could run code" in source.problems()[0]
        with pytest.raises(UserError, match=r"os\.system"):
            source.load()


def test_overlapping_classes_are_refused_by_name_unless_forced(mini_root: Path) -> None:
    content = {"data": pixels_of(4, 12), "labels": [1, 2, 3, 9]}
    mini_file(mini_root, "test").write_bytes(pickle.dumps(content))
    first, second = mini(mini_root).problems()
    assert "classes that are in base and in test: 1, 2." in first
    assert "classes that are in validation and in test: 3." in second
    assert "dataset.force=true" in first
    with pytest.raises(UserError, match="in base and in test"):
        mini(mini_root).load()
    assert len(assert_facts_hold(mini(mini_root, force=True)).test_classes) == 9


def test_tiered_imagenet_is_read_in_pieces_and_blue_first(
    tiered_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gda.data.few_shot.npz_images.PIECE", 5)
    loaded = assert_facts_hold(tiered(tiered_root))
    assert loaded.base_classes == ("0", "1", "2", "3")
    assert loaded.validation_classes == ("4", "5")
    expected = pixels_of(12, 12, 0)[..., ::-1]
    assert np.array_equal(loaded.base.images.permute(0, 2, 3, 1).numpy(), expected)
    assert loaded.test.targets.tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_held_out_base_images_are_others_than_those_trained_on(tiered_root: Path) -> None:
    whole = tiered(tiered_root).load()
    assert whole.base_validation is None
    assert whole.base_test is None
    loaded = assert_facts_hold(tiered(tiered_root, validation=0.3, base_test=0.3))
    assert loaded.base_validation is not None
    assert loaded.base_test is not None
    parts = [rows_of(split.images) for split in (loaded.base, loaded.base_validation, loaded.base_test)]
    assert [len(part) for part in parts] == [4, 4, 4]
    assert set.union(*parts) == rows_of(whole.base.images)
    assert loaded.base_test.targets.tolist() == [0, 1, 2, 3]
    assert loaded.validation_classes == ("4", "5")  # classes of its own stay


def test_shares_that_do_not_fit_are_problems_before_loading(tiered_root: Path) -> None:
    assert tiered(tiered_root, validation=0.5, base_test=0.5).problems() != []
    assert tiered(tiered_root, validation=0.9).problems() != []


def test_the_mini_variant_needs_64_classes(tiered_root: Path) -> None:
    assert "64 base classes, and there are 4" in tiered(tiered_root, mini=True).problems()[0]


def test_damaged_and_other_arrays_are_problems_before_loading(tiered_root: Path) -> None:
    path = tiered_root / "val_images.npz"
    whole = path.read_bytes()

    def problem(contents: bytes | None = None, **arrays: Any) -> str:
        if contents is None:
            np.savez(path, **arrays)
        else:
            path.write_bytes(contents)
        (found,) = tiered(tiered_root).problems()
        assert str(path) in found
        return found

    assert "damaged, or no npz" in problem(b"")
    assert "damaged, or no npz" in problem(whole[: len(whole) // 2])
    assert "holds no array 'images'" in problem(data=pixels_of(6, 12))
    assert "Python objects, which could run code" in problem(images=np.array([{}, []], dtype=object))
    assert "not uint8" in problem(images=pixels_of(6, 12).astype(np.int16))
    assert "not uint8" in problem(images=pixels_of(6, 12)[:, :6])
    assert "not uint8" in problem(images=np.asfortranarray(pixels_of(6, 12)))
    assert "holds 5 images, and" in problem(images=pixels_of(5, 12))


def test_an_array_damaged_inside_is_an_error_of_the_user(tiered_root: Path) -> None:
    path = tiered_root / "test_images.npz"
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 20] = bytes(20)
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"data set tiered: .*test_images\.npz is not read: it is damaged"):
        tiered(tiered_root).load()


def test_a_folder_with_a_split_file_is_read(folder_root: Path) -> None:
    loaded = assert_facts_hold(folder(folder_root, base_test=0.25))
    assert loaded.base_classes == ("ape", "cat")  # sorted, as published
    assert loaded.validation_classes == ("dog",)
    assert loaded.test_classes == ("emu", "fox")
    expected = np.array(Image.open(folder_root / "images" / "fox" / "2.png"))
    assert np.array_equal(loaded.test.images[6].permute(1, 2, 0).numpy(), expected)


def test_other_images_for_evaluation_as_published_for_imagenet_800(folder_root: Path) -> None:
    (folder_root / "images").rename(folder_root / "train")
    for number, name in enumerate(("ape", "cat", "dog", "emu", "fox")):
        write_image(folder_root / "val" / name / "0.png", seed=100 + number)
    loaded = assert_facts_hold(folder(folder_root, evaluation="val"))
    assert len(loaded.base) == 8
    assert loaded.base_validation is not None
    for split, names in ((loaded.base_validation, ("ape", "cat")), (loaded.test, ("emu", "fox"))):
        files = [folder_root / "val" / name / "0.png" for name in names]
        expected = np.stack([np.array(Image.open(file)) for file in files])
        assert np.array_equal(split.images.permute(0, 2, 3, 1).numpy(), expected)


@pytest.mark.parametrize(("width", "height"), [(30, 20), (20, 31), (12, 12)])
def test_images_are_resized_to_a_box_and_their_middle_cut_out(
    folder_root: Path, width: int, height: int
) -> None:
    for name in ("ape", "emu"):
        write_image(folder_root / "images" / name / "0.png", width, height)
    image = Image.open(folder_root / "images" / "emu" / "0.png")
    loaded = folder(folder_root, image_size=12, box_size=15, train_image_size=15).load()
    boxed = TF.resize(image, 15)
    for found, size in ((loaded.test.images[0], 12), (loaded.base.images[0], 15)):
        expected = np.array(TF.center_crop(boxed, [size, size]))
        assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_wrong_split_files_are_named(folder_root: Path) -> None:
    def problem(text: str) -> str:
        (folder_root / "split.json").write_text(text)
        (found,) = folder(folder_root).problems()
        return found

    assert f"{folder_root / 'split.json'} is not read" in problem("{")
    assert "is no JSON" in problem("{")
    assert "is no JSON" in problem("[" * 100_000)
    assert "no JSON object" in problem("[]")
    assert "no list novel" in problem('{"base": ["cat"]}')
    assert "no list base and no list novel" in problem("{}")
    assert "did you mean 'novel'" in problem('{"base": ["cat"], "novell": ["emu"]}')
    assert "the classes of base twice" in problem('{"base": ["cat"], "train": ["ape"], "novel": ["emu"]}')
    assert "'novel' is no list of class folders" in problem('{"base": ["cat"], "novel": "emu"}')
    assert "'base' is no list of class folders" in problem('{"base": [], "novel": ["emu"]}')
    assert "'base' names twice: cat" in problem('{"base": ["cat", "cat"], "novel": ["emu"]}')
    assert "no folder in" in problem('{"base": ["cat", "yak"], "novel": ["emu"]}')
    (folder_root / "images" / "gnu").mkdir()
    assert "no images in these class folders" in problem('{"base": ["cat"], "novel": ["gnu"]}')
    assert "are in base and in test: cat" in problem('{"base": ["cat"], "novel": ["cat", "emu"]}')
    (folder_root / "split.json").unlink()
    (problems,) = folder(folder_root).problems()
    assert "there is no split file" in problems


def test_missing_folders_and_too_small_a_box_are_named_all_at_once(folder_root: Path) -> None:
    problems = folder(folder_root, images="a", evaluation="b", box_size=8).problems()
    assert [str(folder_root / name) in problem for name, problem in zip("ab", problems, strict=False)] == [
        True
    ] * 2
    assert "box_size=8 is smaller" in problems[2]


def test_unreadable_images_are_named_all_at_once(folder_root: Path) -> None:
    for name in ("0", "1"):
        (folder_root / "images" / "fox" / f"{name}.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"data set mine: 2 images can't be read: .*fox/0\.png.*fox/1\.png"):
        folder(folder_root).load()


def test_the_fingerprint_follows_contents_and_split(folder_root: Path) -> None:
    before = folder(folder_root).fingerprint()
    (folder_root / "images").rename(folder_root / "train")
    assert folder(folder_root).fingerprint() == before
    write_image(folder_root / "train" / "cat" / "0.png", seed=77)
    changed = folder(folder_root).fingerprint()
    assert changed != before
    (folder_root / "split.json").write_text('{"base": ["cat"], "val": ["dog"], "novel": ["emu", "fox"]}')
    assert folder(folder_root).fingerprint() not in (before, changed)


def test_fingerprints_of_published_files_follow_their_contents(mini_root: Path, tiered_root: Path) -> None:
    before = mini(mini_root).fingerprint(), tiered(tiered_root).fingerprint()
    content = {"data": pixels_of(12, 12, 9), "labels": [number for number in range(5, 8) for _ in range(4)]}
    mini_file(mini_root, "test").write_bytes(pickle.dumps(content, protocol=2))
    np.savez_compressed(tiered_root / "test_images.npz", images=pixels_of(9, 12, 9))
    assert mini(mini_root).fingerprint() != before[0]
    assert tiered(tiered_root).fingerprint() != before[1]


def test_omniglot_holds_out_whole_alphabets(omniglot_root: Path) -> None:
    loaded = assert_facts_hold(omniglot(omniglot_root))
    assert loaded.test_classes == ("D.character01", "D.character02", "E.character01", "E.character02")
    alphabets = [{name[0] for name in names} for names in (loaded.base_classes, loaded.validation_classes)]
    assert [len(each) for each in alphabets] == [2, 1]
    assert set.union(*alphabets) == set("ABC")
    seeds = {omniglot(omniglot_root, split_seed=seed).load().validation_classes for seed in range(8)}
    assert len(seeds) > 1
    assert "leaves no base classes" in omniglot(omniglot_root, validation_alphabets=3).problems()[0]


def test_omniglot_reads_torchvisions_layout_and_pixels(
    omniglot_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = omniglot(omniglot_root)
    expected, fingerprint = plain.load(), plain.fingerprint()
    for part in ("background", "evaluation"):
        for character in list((omniglot_root / part).iterdir()):
            alphabet, name = character.name.split(".")
            target = omniglot_root / "omniglot-py" / f"images_{part}" / alphabet / name
            target.parent.mkdir(parents=True, exist_ok=True)
            character.rename(target)
        (omniglot_root / part).rmdir()
    source = omniglot(omniglot_root)
    loaded = source.load()
    assert source.fingerprint() == fingerprint
    assert loaded.base_classes == expected.base_classes
    assert torch.equal(loaded.base.images, expected.base.images)

    # Its constructor looks for the archive, too.
    monkeypatch.setattr(torchvision.datasets.Omniglot, "_check_integrity", lambda self: True)
    library = torchvision.datasets.Omniglot(str(omniglot_root), background=False)
    theirs, ours = set(), set()  # torchvision takes files as the file system lists them
    for image, target in (library[number] for number in range(len(library))):
        pixels = np.stack([np.array(TF.resize(image, 28))] * 3)
        theirs.add((library._characters[target].replace("/", "."), pixels.tobytes()))
    for pixels, target in zip(loaded.test.images.numpy(), loaded.test.targets, strict=True):
        ours.add((loaded.test_classes[target], pixels.tobytes()))
    assert ours == theirs
    assert len(ours) == len(library) == 12


def test_omniglot_may_validate_on_held_out_drawings(omniglot_root: Path) -> None:
    loaded = assert_facts_hold(omniglot(omniglot_root, validation_alphabets=0, validation=0.3))
    assert loaded.validation is loaded.base_validation
    assert loaded.validation_classes == loaded.base_classes
    assert len(loaded.base_classes) == 6


def test_a_character_without_drawings_is_named(omniglot_root: Path) -> None:
    (omniglot_root / "evaluation" / "F.character01").mkdir()
    assert "no drawings of F.character01" in omniglot(omniglot_root).problems()[0]


def test_digits_validate_on_held_out_images_of_base_classes() -> None:
    loaded = assert_facts_hold(digits())
    assert loaded.base_classes == loaded.validation_classes == tuple("01234")
    assert loaded.test_classes == tuple("56789")
    assert loaded.validation is loaded.base_validation
    assert loaded.validation is not None
    assert loaded.base_test is not None
    assert len(loaded.base) + len(loaded.validation) + len(loaded.base_test) + len(loaded.test) == 1797
    assert loaded.test.targets.bincount().tolist() == [182, 181, 179, 174, 180]


def test_digits_are_the_digits_they_are_said_to_be() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    shown = np.round(pixels.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    known = {image.tobytes(): label for image, label in zip(shown, labels, strict=True)}
    loaded = digits().load()
    for split, first in ((loaded.base, 0), (loaded.validation, 0), (loaded.base_test, 0), (loaded.test, 5)):
        assert split is not None
        found = [known[image[0].numpy().tobytes()] for image in split.images]
        assert found == [first + target for target in split.targets.tolist()]


def test_digits_are_enlarged_when_asked_to() -> None:
    loaded = assert_facts_hold(digits(image_size=16, train_image_size=20))
    assert loaded.base.images.shape[2:] == (20, 20)


def test_without_a_share_there_is_no_validation() -> None:
    loaded = assert_facts_hold(digits(validation=0.0, base_test=0.0))
    assert loaded.validation is None
    assert loaded.validation_classes == ()


def test_too_much_memory_is_refused_before_decoding(mini_root: Path) -> None:
    (problem,) = mini(mini_root, image_size=1024, max_memory_gib=0.01).problems()
    assert "0.16 GiB" in problem  # 56 images of 3 MiB
    assert "dataset.max_memory_gib=0.01" in problem
    assert "dataset.cache" in problem


@pytest.mark.parametrize("kind", ["mini", "tiered", "folder", "omniglot", "digits"])
def test_images_larger_than_memory_are_decoded_once_into_a_cache(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    make: Any = {"mini": mini, "tiered": tiered, "folder": folder, "omniglot": omniglot, "digits": digits}[
        kind
    ]
    root = () if kind == "digits" else (request.getfixturevalue(f"{kind}_root"),)
    cache = tmp_path / "cache"
    options = {"max_memory_gib": 1e-9, "cache": str(cache)}
    expected, first = make(*root).load(), make(*root, **options).load()
    files = sorted(cache.iterdir())
    assert [file.suffix for file in files] == [".npy"] * len(files)
    times = [file.stat().st_mtime_ns for file in files]
    second = make(*root, **options).load()
    assert sorted(cache.iterdir()) == files
    assert [file.stat().st_mtime_ns for file in files] == times
    for name in SPLITS:
        splits = [getattr(loaded, name) for loaded in (expected, first, second)]
        if splits[0] is not None:
            assert torch.equal(splits[0].images, splits[1].images)
            assert torch.equal(splits[0].images, splits[2].images)
            assert torch.equal(splits[0].targets, splits[2].targets)


def cached_digits(folder: Path, **options: Any) -> DigitsFewShot:
    return digits(max_memory_gib=1e-9, cache=str(folder), **options)


def test_other_options_are_other_cache_files(tmp_path: Path) -> None:
    for options in ({}, {"image_size": 9}, {"split_seed": 1}, {"validation": 0.3}, {"train_image_size": 9}):
        loaded = assert_facts_hold(cached_digits(tmp_path, **options))
        assert torch.equal(loaded.base.images, digits(**options).load().base.images)


def test_what_is_written_into_cached_images_never_reaches_the_file(tmp_path: Path) -> None:
    first = cached_digits(tmp_path).load()
    expected = first.base.images.clone()
    first.base.images.zero_()
    assert torch.equal(cached_digits(tmp_path).load().base.images, expected)


def test_damaged_cache_files_are_an_error_of_the_user(tmp_path: Path) -> None:
    cached_digits(tmp_path).load()
    (file,) = tmp_path.glob("*-base-*")
    whole = file.read_bytes()
    for data in (b"", whole[: len(whole) // 2], b"no array"):
        file.write_bytes(data)
        with pytest.raises(UserError, match="remove it, and it is made again"):
            cached_digits(tmp_path).load()
    np.save(file, np.zeros((2, 3), np.uint8))
    with pytest.raises(UserError, match="holds other images than these"):
        cached_digits(tmp_path).load()


def test_an_interrupted_decoding_leaves_no_cache_file(tmp_path: Path, folder_root: Path) -> None:
    cache = tmp_path / "cache"
    file = folder_root / "images" / "cat" / "0.png"
    whole = file.read_bytes()
    file.write_bytes(b"not an image")
    options = {"max_memory_gib": 1e-9, "cache": str(cache)}
    with pytest.raises(UserError, match="can't be read"):
        folder(folder_root, **options).load()
    assert list(cache.glob("*-base-*")) == []
    file.write_bytes(whole)
    assert len(folder(folder_root, **options).load().base) == 8


def test_a_cache_without_room_is_an_error_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 10, 0))
    with pytest.raises(UserError, match=r"0\.00 GiB are free: set dataset\.cache"):
        cached_digits(tmp_path).load()
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't keep decoded images"):
        cached_digits(tmp_path / "file").load()


def test_mean_and_std_are_checked_with_everything_else() -> None:
    wrong = DigitsFewShot(name="digits", mean=(0.5,) * 3, std=(0.5, 0.5, 0.0), image_size=8, validation=0.999)
    first, *others = wrong.problems()
    assert "std must be positive" in first
    assert others
    with pytest.raises(UserError, match="data set digits: mean and std"):
        wrong.load()
