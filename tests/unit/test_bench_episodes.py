import pytest
import torch

from gda.bench.__main__ import main
from gda.bench.episodes import measure


def test_both_ways_agree_and_images_are_counted() -> None:
    one, five, both = measure("convnet4", (20, 6), 2, torch.device("cpu"))
    assert [each.what for each in (one, five, both)] == ["1-shot", "5-shot", "1-shot and 5-shot"]
    # All of the 120 images occur in 800 episodes of 80 and of 100 images.
    assert [each.images for each in (one, five, both)] == [120] * 3
    assert [each.encoded for each in (one, five, both)] == [64_000, 80_000, 144_000]
    assert both.anew == pytest.approx(one.anew + five.anew)
    # Rounding may flip the nearest class of a query or two out of 75.
    assert all(each.deviation < 3 / 75 for each in (one, five, both))
    assert one.ratio == one.anew / one.once


def test_the_command_prints_the_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--size", "20x6", "--repeats", "1", "--threads", "1", "--device", "cpu"]
    assert main(["episodes", *options]) == 0
    out = capsys.readouterr().out
    assert "1-shot and 5-shot │    120" in out
    assert "ratio" in out
    assert main(["episodes", *options, "--size", "19x6"]) == 1
    assert "class 0 has 19" in capsys.readouterr().err
