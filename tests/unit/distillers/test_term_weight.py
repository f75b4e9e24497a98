import pytest

from gda.distillers import Progress
from gda.distillers.schedule import Weight


def test_a_number_is_constant() -> None:
    weight = Weight.parse(0.25)
    assert weight == Weight(0.25, 0)
    assert [weight.at(Progress(epoch, 10)) for epoch in (0, 9)] == [0.25, 0.25]


def test_warm_up_counts_epochs_from_one() -> None:
    weight = Weight.parse({"value": 2.0, "warmup_epochs": 20})
    factors = [weight.at(Progress(epoch, 240)) / 2 for epoch in (0, 1, 18, 19, 20, 239)]
    assert factors == pytest.approx([1 / 20, 2 / 20, 19 / 20, 1, 1, 1], rel=1e-12)


def test_defaults_and_weights_pass() -> None:
    assert Weight.parse({"warmup_epochs": 3}) == Weight(1.0, 3)
    assert Weight.parse(Weight(0.5, 2)) == Weight(0.5, 2)
    assert Weight.parse(0) == Weight(0.0)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"value": 1.0, "warmup": 3}, ValueError, "warmup"),
        (-0.1, ValueError, "at least 0"),
        (float("nan"), ValueError, "at least 0"),
        ({"value": 1.0, "warmup_epochs": -1}, ValueError, "warmup_epochs"),
        ("0.1", TypeError, "number or a mapping"),
        (True, TypeError, "number or a mapping"),
    ],
)
def test_wrong_weights_are_refused(wrong, error, message) -> None:
    with pytest.raises(error, match=message):
        Weight.parse(wrong)
