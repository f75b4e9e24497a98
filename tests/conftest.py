"""What the tests share: composing configs as the command line does, and settings that train in a second."""

import copy
import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"

Compose = Callable[..., dict[str, Any]]

# Digits at their native size; validation 20 % of 897 images, 900 test images.
_TINY = {
    "dataset.image_size": "8",
    "dataset.train_size": "60",
    "recipe.epochs": "2",
    "recipe.batch_size": "16",
    "recipe.train_transforms.crop.padding": "1",
    "student": "resnet8",
    "teacher": "resnet8",
    "trainer.threads": "1",
    "trainer.device": "cpu",
    "tracking": "none",
}


def merged(overrides: Iterable[str]) -> list[str]:
    """The tiny settings with `overrides`, each key once: Hydra refuses a group that is chosen twice."""
    chosen = dict(_TINY)
    for override in overrides:
        key, _, value = override.partition("=")
        chosen[key] = value
    return [f"{key}={value}" for key, value in chosen.items()]


def pytest_collection_finish() -> None:
    """Takes thousands of tests out of the garbage collector's rounds: what lives on need not be looked at."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


_PARSED: dict[Path, Any] = {}


@contextmanager
def files_read_once() -> Iterator[None]:
    """Within the block, Hydra gets copies of the files of `conf/`, thirty a composition, read once."""
    from omegaconf import OmegaConf

    load = OmegaConf.load

    def copied(file: Any) -> Any:
        path = Path(getattr(file, "name", file))
        if not path.is_relative_to(CONF):
            return load(file)
        if path not in _PARSED:
            _PARSED[path] = load(file)
        return copy.deepcopy(_PARSED[path])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", copied)
        yield


@pytest.fixture(scope="session")
def compose() -> Compose:
    """Composes `conf/` with overrides into plain data, interpolations resolved."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from gda.config.check import resolved

    @cache
    def composed(*overrides: str) -> dict[str, Any]:
        with files_read_once(), initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            return resolved(hydra_compose("config", overrides=list(overrides)))

    return lambda *overrides: copy.deepcopy(composed(*overrides))


@pytest.fixture(scope="session")
def tiny(compose: Compose) -> Compose:
    """Composes a config that trains in about a second on one core; overrides win."""
    return lambda *overrides: compose(*merged(overrides))


@pytest.fixture(scope="session")
def tiny_overrides() -> Callable[..., list[str]]:
    """The same as a command line."""
    return lambda *overrides: merged(overrides)


@pytest.fixture(scope="session")
def cifar_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the files of both CIFAR archives, all empty: the check reads no image."""
    root = tmp_path_factory.mktemp("cifar")
    files = {
        "cifar-10-batches-py": [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"],
        "cifar-100-python": ["train", "test", "meta"],
    }
    for folder, names in files.items():
        (root / folder).mkdir()
        for name in names:
            (root / folder / name).touch()
    return root


@pytest.fixture(scope="session")
def image_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny image folder: two classes, 16 training and 4 test images each."""
    from PIL import Image

    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 16), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (200 * label, 10 * number, 50)).save(folder / f"{number:02}.png")
    return root


@pytest.fixture(scope="session")
def teacher_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an untrained resnet8 for ten classes, in a file."""
    import torch

    from gda.models import create_model

    path = tmp_path_factory.mktemp("weights") / "resnet8.pt"
    torch.manual_seed(7)
    torch.save({"model": create_model("resnet8", num_classes=10).state_dict()}, path)
    return path
