"""The result of a run: its last epoch, its best validation epoch, and what no one could have chosen."""

from gda.training.result import is_better, result_of


def row(epoch: int, test: float, validation: float | None = None) -> dict[str, float]:
    found: dict[str, float] = {"epoch": epoch, "test_top1": test}
    return found if validation is None else {**found, "validation_top1": validation}


def test_best_is_chosen_on_validation_images_and_never_on_test_images() -> None:
    history = [{"epoch": 0}, row(1, 90, 50), row(2, 40, 70), row(3, 60, 60)]
    assert result_of(history) == {
        "last": history[3],
        "best": history[2],
        "test_top1_oracle": 90,
        "oracle_epoch": 1,
    }


def test_without_validation_images_there_is_no_best() -> None:
    history = [{"epoch": 0, "teacher_test_top1": 99.0}, row(1, 90), row(2, 40)]
    result = result_of(history)
    assert result["best"] is None
    assert result["last"] == history[2]
    assert (result["test_top1_oracle"], result["oracle_epoch"]) == (90, 1)


def test_ties_keep_the_earlier_epoch() -> None:
    history = [row(1, 10, 50), row(2, 20, 50), row(3, 20, 50)]
    result = result_of(history)
    assert result["best"] == history[0]
    assert result["oracle_epoch"] == 2


def test_is_better() -> None:
    assert is_better(row(1, 0, 0.0), None)
    assert is_better(row(2, 0, 1.0), row(1, 99, 0.5))
    assert not is_better(row(2, 0, 0.5), row(1, 0, 0.5))
    assert not is_better(row(1, 99), None)
