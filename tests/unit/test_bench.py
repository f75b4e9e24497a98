import pytest
import torch

from gda.bench.__main__ import main
from gda.bench.sinkhorn import compare, peak_bytes, saved_bytes
from gda.bench.step import PARTS, WHOLE, StepBench
from gda.bench.timing import Stopwatch


def test_both_tables_have_their_parts(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--student", "resnet8", "--teacher", "resnet8", "--batch", "8", "--size", "8x10"]
    assert main([*small, "--threads", "1", "--repeats", "2", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for text in (*PARTS, WHOLE, "images/s", "share", f"torch {torch.__version__}", "1 of "):
        assert text in out
    assert any(row.startswith("│ 8, 10 │") for row in out.splitlines())
    assert "- saved: bytes" in out


def test_one_of_the_two(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert main(["sinkhorn", "--size", "6x4", "--repeats", "1", "--device", "cpu", "--threads", "1"]) == 0
    assert "optimiser" not in capsys.readouterr().out
    assert torch.get_num_threads() == threads
    assert main(["step", "--student", "resnet9", "--repeats", "1", "--device", "cpu"]) == 1
    assert "resnet8" in capsys.readouterr().err


def test_the_divided_step_has_the_gradients_of_the_step() -> None:
    device = torch.device("cpu")
    states = []
    for divided in (True, False):
        torch.manual_seed(0)
        bench = StepBench("cifar100", "resnet8", "resnet8", 8, device)
        watch = Stopwatch(device)
        times = bench.parts(watch) if divided else {WHOLE: bench.whole(watch)}
        assert set(times) == set(PARTS if divided else [WHOLE])
        states.append(bench.task.student.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], msg=name)


def test_variants_agree_and_the_published_one_keeps_more() -> None:
    found = compare(32, 10, 1, torch.device("cpu"))
    ours, published = found.variants["gda"], found.variants["published"]
    assert max(ours.value_deviation, ours.gradient_deviation) < 1e-5
    assert published.saved > 40 * 32 * 32 * 4  # two B x B matrices an iteration
    assert ours.saved < published.saved / 4
    assert ours.saved <= ours.peak
    assert found.ratio > 0


def test_bytes_are_counted() -> None:
    there = torch.ones(1000, requires_grad=True)

    def work() -> torch.Tensor:
        squared = there * there  # keeps `there` only
        return (squared.exp() * 2).sum()  # keeps the exponentials

    assert saved_bytes(work, (there,)) == 4000
    # Squares, exponentials and their doubles at one time, and the scalars; rounded up to 64 bytes.
    assert 12000 <= peak_bytes(work, torch.device("cpu")) < 13000
