"""Taps under mixed precision, DDP, torch.compile and moving averages."""

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gda.models import create_model, describe, features
from gda.models.zoo.resnet_cifar import CifarResNet

NAMES = ["stage1:pre", "stage2", "pooled"]


def tiny_resnet() -> nn.Module:
    torch.manual_seed(0)
    return create_model("resnet8", num_classes=5, widths=(4, 4, 8, 8))


def images(seed: int = 1) -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def eager(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What an uncompiled, untapped twin gives; batch statistics are taken as `model` takes them."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        module._compiled_call_impl = None
    with features(twin, NAMES) as taps:
        twin(x)
    return taps.collect()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected)


def test_under_autocast_features_have_the_precision_of_the_pass() -> None:
    model, x = tiny_resnet(), images()
    with features(model, NAMES) as taps:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(x)
        found = taps.collect()
        assert {value.dtype for value in (logits, *found.values())} == {torch.bfloat16}
        sum(value.float().sum() for value in found.values()).backward()
        assert model.conv1.weight.grad.dtype == torch.float32
        assert model.conv1.weight.grad.abs().sum() > 0
        model(x)
        for name, value in taps.collect().items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(found[name].float(), value, rtol=0.05, atol=0.05)


DDP = """
import sys, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from gda.models import create_model, features

rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)

def model():
    torch.manual_seed(0)
    return create_model("resnet8", num_classes=5, widths=(4, 4, 8, 8)).double()

def gradients(model, x):
    with features(model, ["stage1:pre", "stage2", "pooled"]) as taps:
        logits = model(x)
        found = taps.collect()
    model.zero_grad()
    (logits.square().mean() + sum(value.square().mean() for value in found.values())).backward()
    return found, [p.grad.clone() for p in model.parameters()]

x = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
found, shared = gradients(DistributedDataParallel(model()), x[rank])
alone = [gradients(model(), part) for part in x]
for name, value in alone[rank][0].items():
    torch.testing.assert_close(found[name], value)
for together, first, second in zip(shared, alone[0][1], alone[1][1], strict=True):
    torch.testing.assert_close(together, (first + second) / 2)
assert any((first - second).abs().max() > 1e-6 for first, second in zip(alone[0][1], alone[1][1]))
dist.barrier()
dist.destroy_process_group()
print("same")
"""


def test_under_ddp_features_are_local_and_their_gradients_are_averaged(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DDP]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            out, err = process.communicate(timeout=180)
            assert out.split() == ["same"], err
    finally:
        for process in processes:
            process.kill()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """As in a new process, where nothing has been tapped yet."""
    import torch._dynamo.config as config

    torch._dynamo.reset()
    before = config.skip_nnmodule_hook_guards
    config.skip_nnmodule_hook_guards = True
    yield
    config.skip_nnmodule_hook_guards = before
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_in_place_after_tapping_through_training_and_evaluation() -> None:
    model, x = tiny_resnet(), images()
    taps = features(model, NAMES)
    model.compile(backend="aot_eager")
    for training in (True, False, True):
        model.train(training)
        expected = eager(model, x)
        logits = model(x)
        found = taps.collect()
        assert_same(found, expected)
        (logits.sum() + sum(value.square().sum() for value in found.values())).backward()
    assert model.conv1.weight.grad.abs().sum() > 0
    with torch.no_grad():
        model.eval()(x)
    assert not any(value.requires_grad for value in taps.collect().values())


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_features_have_the_gradients_of_uncompiled_ones() -> None:
    model, x = tiny_resnet().double().eval(), images().double()
    reference = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager")
    grads = []
    for tapped, inner in ((compiled, model), (reference, reference)):
        with features(tapped, NAMES) as taps:
            logits = tapped(x)
            (logits.sum() + sum(value.square().sum() for value in taps.collect().values())).backward()
        grads.append({name: parameter.grad for name, parameter in inner.named_parameters()})
    assert_same(*grads)


@pytest.mark.usefixtures("fresh_compiler")
def test_taps_that_come_after_compiling_are_seen_and_their_removal_too() -> None:
    model, x = tiny_resnet().eval(), images()
    model.compile(backend="aot_eager")
    logits = model(x)
    for names in (NAMES, ["layer1.0.bn1"], []):
        with features(model, names) as taps:
            torch.testing.assert_close(model(x), logits)
            assert taps.collect().keys() == set(names)
        model(x)
        assert taps.features == {}


@pytest.mark.usefixtures("fresh_compiler")
def test_of_two_compiled_models_of_one_class_only_the_tapped_one_is_read() -> None:
    teacher, student = tiny_resnet().eval(), CifarResNet(8, num_classes=5, widths=(4, 4, 8, 8)).eval()
    for model in (teacher, student):
        model.compile(backend="aot_eager")
    first, second = images(1), images(2)
    teacher(first)
    with features(student, NAMES) as taps:
        expected = eager(student, first)
        student(first)
        assert_same(taps.features, expected)
        teacher(second)
        assert_same(taps.features, expected)


@pytest.mark.usefixtures("fresh_compiler")
def test_describing_a_compiled_model_compiles_nothing() -> None:
    model = tiny_resnet()
    plain = describe(model, NAMES, 8)
    compiled: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        compiled.append("a graph")
        return graph

    model.compile(backend=backend)
    assert describe(model, NAMES, 8) == plain
    assert describe(torch.compile(model, backend=backend), NAMES, 8) == plain
    assert compiled == []
    model(images())
    assert compiled


def test_a_moving_average_does_not_write_into_the_students_taps() -> None:
    student, x = tiny_resnet(), images()
    taps = features(student, NAMES)
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    student(x)
    found = taps.collect()
    sum(value.square().mean() for value in found.values()).backward()
    torch.optim.SGD(student.parameters(), lr=0.1).step()
    average.update_parameters(student)
    average.module.eval()(x)
    average(x)
    assert taps.features == {}

    resumed = tiny_resnet()
    resumed_taps = features(resumed, NAMES)
    other = AveragedModel(resumed, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    other.module.load_state_dict(average.module.state_dict())
    resumed.load_state_dict(student.state_dict())
    other.module.eval()(x)
    assert resumed_taps.features == {}
    student.eval()(x)
    resumed.eval()(x)
    assert_same(resumed_taps.collect(), taps.collect())


def test_a_moving_average_can_be_tapped_itself() -> None:
    student, x = tiny_resnet().eval(), images()
    average = AveragedModel(student)
    expected = eager(student, x)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    with features(average, NAMES) as taps:
        average(x)
        assert_same(taps.collect(), expected)
