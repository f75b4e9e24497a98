"""Weights in every published layout: what is recognised, what is loaded, and what is said when not."""

import argparse
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from gda.errors import UserError
from gda.models import create_model, load_checkpoint
from gda.models.weights.checkpoint_formats import safetensors_metadata
from gda.models.weights.checkpoints import file_hash, read_checkpoint

State = dict[str, Tensor]


def resnet(seed: int, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    model = create_model("resnet8", classes)
    for value in model.state_dict().values():
        value.copy_(torch.rand(value.shape)) if value.is_floating_point() else value.fill_(seed)
    return model


@pytest.fixture
def state() -> State:
    return OrderedDict(resnet(1).state_dict())


@pytest.fixture
def average() -> State:
    return OrderedDict(resnet(2).state_dict())


@pytest.fixture
def optimizer() -> dict[str, Any]:
    model = resnet(1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    sgd.step()
    return sgd.state_dict()


def assert_loaded(model: nn.Module, expected: State) -> None:
    loaded = model.state_dict()
    assert loaded.keys() == expected.keys()
    for key, value in loaded.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)


def prefixed(prefix: str, state: State) -> State:
    return OrderedDict((prefix + key, value) for key, value in state.items())


# -- layouts, as each project's own training code writes them ----------------------------------------

Layout = Callable[[State, State, dict[str, Any]], tuple[Any, str, int | None, dict[str, float], bool]]
LAYOUTS: dict[str, Layout] = {}


def layout(function: Layout) -> Layout:
    LAYOUTS[function.__name__] = function
    return function


@layout
def gda_run(state: State, average: State, optimizer: dict[str, Any]) -> Any:
    row = {"epoch": 7, "learning_rate": 0.1, "test_top1": 61.5, "selection": None}
    content = {
        "format": 1,
        "epoch": 7,
        "metrics": row,
        "history": [row],
        "best": row,
        "model": state,
        "model_ema": average,
        "ema_updates": torch.tensor(70),
        "modules": {"distiller": {}},
        "optimizer": optimizer,
        "scaler": {},
    }
    return content, "gda run", 7, {"epoch": 7, "learning_rate": 0.1, "test_top1": 61.5}, True


@layout
def gda_run_without_average(state: State, average: State, optimizer: dict[str, Any]) -> Any:
    content = {"format": 1, "epoch": 7, "metrics": {"test_top1": 61.5}, "model": state, "model_ema": None}
    return content, "gda run", 7, {"test_top1": 61.5}, False


@layout
def mdistiller_latest(state: State, average: State, optimizer: dict[str, Any]) -> Any:
    everything = {**prefixed("module.student.", state), **prefixed("module.teacher.", average)}
    content = {
        "epoch": 240,
        "model": OrderedDict(everything, **{"module.conv_reg.weight": torch.rand(3, 3)}),
        "optimizer": optimizer,
        "best_acc": np.float64(76.32),
    }
    return content, "mdistiller", 240, {"best_acc": 76.32}, False


@layout
def mdistiller_latest_of_one_process(state: State, average: State, optimizer: dict[str, Any]) -> Any:
    content = {"epoch": 240, "model": prefixed("student.", state), "optimizer": optimizer, "best_acc": 76.5}
    return content, "mdistiller", 240, {"best_acc": 76.5}, False


@layout
def mdistiller_student(state: State, average: State, optimizer: dict[str, Any]) -> Any:
    return {"model": state}, "mdistiller", None, {}, False


@layout
def repdistiller_teacher(state: State, average: State, optimizer: dict[str, Any]) -> Any:
    content = {"epoch": 240, "model": state, "accuracy": torch.tensor(72.5), "optimizer": optimizer}
    return content, "RepDistiller", 240, {"accuracy": 72.5}, False


@layout
def repdistiller_best(state: State, average: State, optimizer: dict[str, Any]) -> Any:
    content = {"epoch": 211, "model": state, "best_acc": torch.tensor(73.25), "optimizer": optimizer}
    return content, "RepDistiller", 211, {"best_acc": 73.25}, False


@layout
def repdistiller_last(state: State, average: State, optimizer: dict[str, Any]) -> Any:
    options = argparse.Namespace(model_s="resnet8", epochs=240, lr_decay_epochs=[150, 180, 210], gamma=1.0)
    return {"opt": options, "model": state}, "RepDistiller", 240, {}, False


@layout
def timm_saver(state: State, average: State, optimizer: dict[str, Any]) -> Any:
    content = {
        "epoch": 299,
        "arch": "resnet8",
        "state_dict": state,
        "optimizer": optimizer,
        "version": 2,
        "args": argparse.Namespace(model="resnet8", mean=(0.5, 0.5, 0.5), sched=None, smoothing=0.1),
        "amp_scaler": {"scale": 65536.0, "_growth_tracker": 0},
        "state_dict_ema": average,
        "metric": np.float32(75.5),
    }
    return content, "timm", 300, {"metric": 75.5}, True


@layout
def few_shot_meta_baseline(state: State, average: State, optimizer: dict[str, Any]) -> Any:
    content = {
        "file": "train_classifier.py",
        "config": {"train_dataset": "mini-imagenet", "optimizer_args": {"lr": 0.1, "milestones": [90]}},
        "model": "classifier",
        "model_args": {"encoder": "resnet12", "classifier_args": {"n_classes": 64}},
        "model_sd": state,
        "training": {"epoch": 100, "optimizer": "sgd", "optimizer_args": {}, "optimizer_sd": optimizer},
    }
    return content, "few-shot-meta-baseline", 100, {}, False


@layout
def torchvision_references(state: State, average: State, optimizer: dict[str, Any]) -> Any:
    averaged = OrderedDict({"n_averaged": torch.tensor(9)}, **prefixed("module.", average))
    content = {
        "model": state,
        "optimizer": optimizer,
        "lr_scheduler": {"milestones": Counter({30: 1}), "last_epoch": 90},
        "epoch": 89,
        "args": argparse.Namespace(model="resnet18", device=torch.device("cpu")),
        "model_ema": averaged,
    }
    return content, "torchvision references", 90, {}, True


@layout
def imagenet_example(state: State, average: State, optimizer: dict[str, Any]) -> Any:
    content = {
        "epoch": 90,
        "arch": "resnet18",
        "state_dict": prefixed("module.", state),
        "best_acc1": torch.tensor(69.5),
        "optimizer": optimizer,
    }
    return content, "state_dict", 90, {"best_acc1": 69.5}, False


@layout
def pytorch_cifar(state: State, average: State, optimizer: dict[str, Any]) -> Any:
    return (
        {"net": prefixed("module.", state), "acc": 95.25, "epoch": 199},
        "pytorch-cifar",
        199,
        {"acc": 95.25},
        False,
    )


@layout
def bare(state: State, average: State, optimizer: dict[str, Any]) -> Any:
    return state, "state dictionary", None, {}, False


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_published_layout_round_trips(
    name: str, zipped: bool, state: State, average: State, optimizer: dict[str, Any], tmp_path: Path
) -> None:
    content, format, epoch, metrics, has_average = LAYOUTS[name](state, average, optimizer)
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    model = resnet(3)
    loaded = load_checkpoint(model, path)
    assert_loaded(model, state)
    assert (loaded.format, loaded.epoch, loaded.ema) == (format, epoch, False)
    assert loaded.metrics == pytest.approx(metrics)
    assert (loaded.source, loaded.path, loaded.sha256) == (str(path), path, file_hash(path))
    if has_average:
        assert load_checkpoint(model, path, weights="ema").ema
        assert_loaded(model, average)
    else:
        with pytest.raises(UserError, match="holds no moving average"):
            load_checkpoint(model, path, weights="ema")
        assert_loaded(model, state)


def test_safetensors_give_back_what_was_stored_with_them(
    state: State, optimizer: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(LAYOUTS["timm_saver"](state, state, optimizer)[0], tmp_path / "timm.pth")
    metadata = safetensors_metadata(read_checkpoint(tmp_path / "timm.pth"))
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors", metadata)
    model = resnet(3)
    loaded = load_checkpoint(model, tmp_path / "weights.safetensors")
    assert_loaded(model, state)
    assert (loaded.format, loaded.epoch, loaded.metrics) == ("safetensors", 300, {"metric": 75.5})
    assert read_checkpoint(tmp_path / "weights.safetensors").architecture == "resnet8"


@pytest.mark.parametrize(
    "metadata", [None, {"format": "pt"}, {"epoch": "x", "metrics": "[1", "architecture": ""}]
)
def test_safetensors_of_others(metadata: dict[str, str] | None, state: State, tmp_path: Path) -> None:
    safetensors.torch.save_file(state, tmp_path / "no_suffix", metadata)
    model = resnet(3)
    loaded = load_checkpoint(model, tmp_path / "no_suffix")
    assert_loaded(model, state)
    assert (loaded.epoch, loaded.metrics) == (None, {})


def test_a_checkpoint_of_a_real_run_of_python_2_names(state: State, tmp_path: Path) -> None:
    """Files from Python 2 pickle an ordered dictionary as a list of lists, and no hooks as None."""

    class Old(OrderedDict):  # type: ignore[type-arg]
        def __reduce__(self) -> Any:
            return OrderedDict, ([[key, value] for key, value in self.items()],)

    torch.save(Old(state), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    model = resnet(3)
    load_checkpoint(model, tmp_path / "old.pth")
    assert_loaded(model, state)


# -- wrappers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "student.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "module.student._orig_mod.",
    ],
)
def test_prefixes_of_wrappers_are_taken_off(prefix: str, state: State, tmp_path: Path) -> None:
    torch.save({"model": prefixed(prefix, state)}, tmp_path / "wrapped.pt")
    model = resnet(3)
    load_checkpoint(model, tmp_path / "wrapped.pt")
    assert_loaded(model, state)


def test_a_bare_averaged_model(state: State, tmp_path: Path) -> None:
    torch.save(AveragedModel(resnet(1)).state_dict(), tmp_path / "average.pt")
    model = resnet(3)
    load_checkpoint(model, tmp_path / "average.pt")
    assert_loaded(model, state)


def test_an_encoder_gets_its_part_of_a_few_shot_classifier(tmp_path: Path, state: State) -> None:
    classifier = {**prefixed("encoder.", state), "classifier.linear.weight": torch.rand(64, 64)}
    torch.save(
        {"model": "classifier", "model_args": {}, "model_sd": classifier, "training": {}}, tmp_path / "c.pth"
    )
    encoder = resnet(3)
    load_checkpoint(encoder, tmp_path / "c.pth")
    assert_loaded(encoder, state)
    whole = nn.ModuleDict(
        {"encoder": resnet(3), "classifier": nn.ModuleDict({"linear": nn.Linear(64, 64, False)})}
    )
    load_checkpoint(whole, tmp_path / "c.pth")
    assert_loaded(whole, classifier)


def test_tensors_that_share_their_numbers(state: State, tmp_path: Path) -> None:
    """Views, transposed and half-precision weights are what they were."""
    everything = torch.rand(1000)
    state["fc.bias"] = everything[7:17]
    state["fc.weight"] = everything[:640].view(64, 10).t()
    state["conv1.weight"] = state["conv1.weight"].half()
    state["bn1.weight"] = nn.Parameter(state["bn1.weight"])
    torch.save(state, tmp_path / "views.pt")
    model = resnet(3)
    load_checkpoint(model, tmp_path / "views.pt")
    assert_loaded(model, {**state, "conv1.weight": state["conv1.weight"].float()})


def test_files_without_batch_counters(state: State, tmp_path: Path) -> None:
    older = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(older, tmp_path / "older.pt")
    model = resnet(3)
    load_checkpoint(model, tmp_path / "older.pt")
    assert_loaded(model, {**model.state_dict(), **older})


# -- what does not fit -------------------------------------------------------------------------------


def refused(model: nn.Module, path: Path, **options: Any) -> str:
    """Returns what the loader says, after checking that the model is as it was."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_checkpoint(model, path, **options)
    assert_loaded(model, before)
    return str(error.value)


def test_a_wrong_number_of_classes_is_said_as_such(tmp_path: Path) -> None:
    torch.save(resnet(1, classes=10).state_dict(), tmp_path / "ten.pt")
    message = refused(resnet(3, classes=100), tmp_path / "ten.pt")
    assert message.endswith("trained for 10 classes, and the model has 100.")


def test_another_architecture_is_named_by_its_weights(tmp_path: Path) -> None:
    torch.save({"model": create_model("resnet32x4", 100).state_dict()}, tmp_path / "teacher.pth")
    message = refused(resnet(3), tmp_path / "teacher.pth")
    assert "these weights fit resnet32x4 with 100 classes" in message
    assert "conv1.weight is (32, 3, 3, 3) in the file and (16, 3, 3, 3) in the model" in message
    assert "the model has no: layer1.0.downsample.0.weight, " in message
    assert " more" in message
    assert len(message) < 1000


def test_a_timm_model_is_named_by_the_file(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = create_model("timm/resnet10t", 7).state_dict()
    state = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in shapes.items()}
    content = {"epoch": 1, "arch": "resnet10t", "version": 2, "state_dict": state}
    torch.save(content, tmp_path / "timm.pth")
    assert "these weights fit timm/resnet10t with 7 classes" in refused(resnet(3), tmp_path / "timm.pth")


def test_an_unknown_architecture_is_named_as_the_file_does(state: State, tmp_path: Path) -> None:
    del state["fc.bias"]
    torch.save({"model": state, "opt": argparse.Namespace(model="mynet", epochs=3)}, tmp_path / "odd.pth")
    message = refused(resnet(3), tmp_path / "odd.pth")
    assert "the file lacks: fc.bias; the file calls its architecture mynet" in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("conv1.weight", torch.full((16, 3, 3, 3), float("nan")), "not finite"),
        ("bn1.running_var", torch.full((16,), float("inf")), "not finite"),
        ("fc.bias", torch.full((10,), 1e300, dtype=torch.float64), "not finite"),  # infinite in float32
        (
            "fc.bias",
            torch.zeros(10, dtype=torch.int64),
            "fc.bias is int64 in the file and float32 in the model",
        ),
        ("bn1.num_batches_tracked", torch.tensor(0.5), "is float32 in the file and int64 in the model"),
        ("fc.bias", torch.zeros(10, 1), "fc.bias is (10, 1) in the file and (10,) in the model"),
    ],
)
def test_weights_that_are_no_weights(
    key: str, value: Tensor, expected: str, state: State, tmp_path: Path
) -> None:
    torch.save({**state, key: value}, tmp_path / "odd.pt")
    assert expected in refused(resnet(3), tmp_path / "odd.pt")


def test_long_and_unprintable_names_are_shortened(state: State, tmp_path: Path) -> None:
    odd = {**state, "\x1b[31m" + "x" * 10_000: torch.zeros(1), "\ud800": torch.zeros(1)}
    torch.save(odd, tmp_path / "odd.pt")
    message = refused(resnet(3), tmp_path / "odd.pt")
    assert message.isprintable()
    assert message.isascii()
    assert len(message) < 500


def test_a_model_that_fails_while_it_loads_is_put_back(state: State, tmp_path: Path) -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 2)
            self.second = nn.Linear(2, 2)
            self.failures = 1

        def _load_from_state_dict(self, *arguments: Any) -> None:
            super()._load_from_state_dict(*arguments)
            if self.failures:
                self.failures -= 1
                self.first.weight.data.fill_(7)
                raise RuntimeError("no")

    model = Failing()
    torch.save({key: value + 1 for key, value in model.state_dict().items()}, tmp_path / "weights.pt")
    assert "could not be loaded: no" in refused(model, tmp_path / "weights.pt")


# -- which file --------------------------------------------------------------------------------------


def test_the_hash_is_verified_before_anything_is_read(state: State, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    right = file_hash(path)
    model = resnet(3)
    assert load_checkpoint(model, path, sha256=right.upper()).sha256 == right
    path.write_bytes(b"no file of weights")
    message = refused(model, path, sha256=right)
    assert right in message
    assert file_hash(path) in message
    assert "64 hexadecimal digits" in refused(model, path, sha256=right[:12])


def test_files_that_are_not_there(tmp_path: Path) -> None:
    assert "There is no checkpoint file" in refused(resnet(3), tmp_path / "nothing.pt")
    assert "is a folder" in refused(resnet(3), tmp_path)
    assert "there are 'raw' and 'ema'" in refused_choice(tmp_path)


def refused_choice(folder: Path) -> str:
    torch.save(resnet(1).state_dict(), folder / "weights.pt")
    return refused(resnet(3), folder / "weights.pt", weights="average")


def test_a_file_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": {"depth": 8}}, tmp_path / "empty.pt")
    assert "holds no weights (its keys: epoch, model)" in refused(resnet(3), tmp_path / "empty.pt")
    torch.save({}, tmp_path / "empty.pt")
    assert "holds no weights (its keys: none)" in refused(resnet(3), tmp_path / "empty.pt")
