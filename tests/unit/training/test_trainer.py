"""The loop, on a task of two numbers: rates, clipping, averaging, precision, guarding, resuming."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gda.config.schema import Recipe, TrainerSettings
from gda.distillers.term import Progress
from gda.tasks.task import Figure, StepOutput
from gda.tracking.run_folder import RunFolder
from gda.training import checkpoint
from gda.training.finite import NonFiniteLoss
from gda.training.precision import Precision
from gda.training.trainer import Trainer

CPU = torch.device("cpu")
STEPS = 3


class Toy:
    """Learns nothing of use; writes down what the trainer does with it."""

    figure = Figure("top1", "top-1 accuracy")

    def __init__(self, gradient: float = 1.0, bad: tuple[int, int] | None = None) -> None:
        self.student = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.Dropout(0.5))
        nn.init.constant_(self.student[0].weight, 1.0)
        self.extra = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.extra.weight, 1.0)
        self.modules = {"student": self.student, "extra": self.extra}
        self.steps = STEPS
        self.gradient, self.bad = gradient, bad
        self.seen: list[tuple[int, int, bool, float]] = []
        self.dtypes: list[torch.dtype] = []
        self.evaluated: list[nn.Module] = []

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[int]:
        yield from range(start_step, STEPS)

    def training_step(self, batch: int, progress: Progress) -> StepOutput:
        draw = float(torch.rand(()))
        self.seen.append((progress.epoch, batch, self.student.training, draw))
        inputs = torch.tensor([[1.0, 2.0], [3.0, -1.0 - draw]])
        logits = self.student(inputs)
        self.dtypes.append(self.student[0](inputs).dtype)
        loss = self.gradient * self.student[0].weight.sum() + logits.float().sum() + self.extra.weight.sum()
        if self.bad == (progress.epoch, batch):
            loss = loss * math.nan
        return StepOutput(loss, {"toy": loss.detach()}, 2, {"logits": logits.detach()})

    def evaluate(self, student: nn.Module, progress: Progress) -> dict[str, float]:
        student.eval()
        self.evaluated.append(student)
        weight = student[0].weight if isinstance(student, nn.Sequential) else torch.zeros(1)
        return {
            "validation_top1": -abs(float(weight.detach().mean()) - 0.7),
            "test_top1": float(weight.mean()),
        }

    def evaluate_teacher(self) -> dict[str, float]:
        return {"teacher_test_top1": 50.0}


Make = Callable[..., Trainer]


@pytest.fixture
def make(tiny: Callable[..., dict[str, Any]], tmp_path: Path) -> Make:
    def build(task: Toy, *overrides: str, folder: str = "run", seed: int = 0) -> Trainer:
        config = tiny("recipe.epochs=4", "trainer.finite_check_every=100", *overrides)
        recipe, settings = Recipe(**config["recipe"]), TrainerSettings(**config["trainer"])
        parameters = [p for module in task.modules.values() for p in module.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=1.0, momentum=0.9)
        run = RunFolder(tmp_path / folder)
        run.begin(config, {}, recipe.epochs)
        return Trainer(task, recipe, settings, optimizer, lambda epoch: 0.1 / (epoch + 1), run, seed, CPU)

    return build


def journal(trainer: Trainer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (trainer.run.path / "metrics.jsonl").read_text().splitlines()]


def test_the_journal_has_a_row_for_the_teacher_and_one_for_each_epoch(make: Make) -> None:
    trainer = make(Toy())
    result = trainer.fit()
    rows = journal(trainer)
    assert rows[0] == {"epoch": 0, "teacher_test_top1": 50.0}
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["learning_rate"] for row in rows[1:]] == [0.1 / epoch for epoch in (1, 2, 3, 4)]
    assert result["last"] == rows[-1]
    assert {key for row in rows for key in row if "second" in key} == set()
    assert len((trainer.run.path / "timing.jsonl").read_text().splitlines()) == 4


def test_training_mode_comes_back_after_every_evaluation(make: Make) -> None:
    task = Toy()
    make(task).fit()
    assert len(task.seen) == 4 * STEPS
    assert all(training for _, _, training, _ in task.seen)


def test_draws_of_a_step_depend_on_seed_epoch_and_step_alone(make: Make) -> None:
    tasks = [Toy(), Toy(), Toy()]
    for number, (task, seed) in enumerate(zip(tasks, (0, 0, 1), strict=True)):
        torch.manual_seed(1000 + number)
        make(task, folder=str(number), seed=seed).fit()
    assert tasks[0].seen == tasks[1].seen
    assert tasks[0].seen != tasks[2].seen
    draws = [draw for *_, draw in tasks[0].seen]
    assert len(set(draws)) == len(draws)


def test_the_mean_of_the_epoch_weighs_images(make: Make) -> None:
    task = Toy()
    losses: list[float] = []
    step = task.training_step

    def uneven(batch: int, progress: Progress) -> StepOutput:
        output = step(batch, progress)
        losses.append(float(output.loss.detach()))
        return StepOutput(output.loss, output.terms, batch + 1, output.tensors)

    task.training_step = uneven  # type: ignore[method-assign]
    trainer = make(task, "recipe.epochs=1")
    trainer.fit()
    expected = sum(loss * weight for loss, weight in zip(losses, (1, 2, 3), strict=True)) / 6
    assert journal(trainer)[1]["train_loss"] == pytest.approx(expected, rel=1e-6)
    assert journal(trainer)[1]["term/toy"] == pytest.approx(expected, rel=1e-6)


def test_clipping_bounds_the_global_norm_of_all_modules(make: Make) -> None:
    moved = {}
    for clip in ("null", "0.5"):
        task = Toy(gradient=100.0)
        before = [p.detach().clone() for m in task.modules.values() for p in m.parameters()]
        precision, parameters = (
            Precision("float32", CPU),
            [p for module in task.modules.values() for p in module.parameters()],
        )
        optimizer = torch.optim.SGD(parameters, lr=1.0)
        output = task.training_step(0, Progress(0, 1))
        precision.backward(output.loss, None, None, optimizer)
        precision.update(optimizer, parameters, None if clip == "null" else float(clip))
        change = torch.cat([(p.detach() - b).flatten() for p, b in zip(parameters, before, strict=True)])
        moved[clip] = float(change.norm())
    assert moved["null"] > 100
    assert moved["0.5"] == pytest.approx(0.5, rel=1e-4)
    gentle = make(Toy(gradient=100.0), "recipe.gradient_clip=0.5")
    wild = make(Toy(gradient=100.0), folder="wild")
    assert abs(gentle.fit()["last"]["test_top1"]) < abs(wild.fit()["last"]["test_top1"]) / 10


def test_the_average_follows_its_recursion_and_is_evaluated_beside_the_raw_student(make: Make) -> None:
    task = Toy()
    weights: list[Tensor] = []
    trainer = make(task, "trainer.ema_decay=0.8", "recipe.epochs=2")
    update = trainer.precision.update

    def watched(*arguments: Any) -> None:
        update(*arguments)
        weights.append(task.student[0].weight.detach().clone())

    trainer.precision.update = watched  # type: ignore[method-assign]
    trainer.fit()
    expected = weights[0]
    for weight in weights[1:]:
        expected = 0.8 * expected + 0.2 * weight
    state = checkpoint.load(trainer.run.path / checkpoint.LAST)
    torch.testing.assert_close(state["model_ema"]["0.weight"], expected)
    assert not torch.allclose(state["model"]["0.weight"], expected)
    assert torch.equal(state["model"]["0.weight"], weights[-1])
    row = journal(trainer)[-1]
    assert row["ema_test_top1"] == pytest.approx(float(expected.mean()))
    assert row["test_top1"] == pytest.approx(float(weights[-1].mean()))
    best = checkpoint.load(trainer.run.path / checkpoint.BEST)
    assert set(best["model_ema"]) == set(best["model"])


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_precision_reaches_the_forward_pass_and_weights_stay_float32(
    precision: str, dtype: torch.dtype, make: Make
) -> None:
    task = Toy()
    make(task, f"trainer.precision={precision}", "recipe.epochs=1").fit()
    assert set(task.dtypes) == {dtype}
    assert {p.dtype for p in task.student.parameters()} == {torch.float32}
    assert not torch.equal(task.student[0].weight, torch.ones(2, 2))


def test_best_is_the_epoch_of_the_best_validation_figure(make: Make) -> None:
    trainer = make(Toy())
    result = trainer.fit()
    rows = journal(trainer)[1:]
    expected = max(rows, key=lambda row: row["validation_top1"])
    assert result["best"] == expected
    best = checkpoint.load(trainer.run.path / checkpoint.BEST)
    assert best["epoch"] == expected["epoch"] != 4
    assert float(best["model"]["0.weight"].mean()) == pytest.approx(expected["test_top1"])


def test_a_bad_loss_stops_the_run_and_keeps_the_last_good_checkpoint(make: Make) -> None:
    trainer = make(Toy(bad=(2, 1)))
    with pytest.raises(NonFiniteLoss, match="term 'toy' in epoch 3, step 2"):
        trainer.fit()
    state = checkpoint.load(trainer.run.path / checkpoint.LAST)
    assert state["epoch"] == 2
    assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())
    assert [row["epoch"] for row in journal(trainer)] == [0, 1, 2]


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_last_step_that_was_too_long_is_no_good_checkpoint(epochs: int, make: Make) -> None:
    """Its loss was finite; the weights after it are not."""
    task = Toy()
    step = task.training_step

    def exploding(batch: int, progress: Progress) -> StepOutput:
        output = step(batch, progress)
        if (progress.epoch, batch) == (epochs - 1, STEPS - 1):
            # The value is finite; the gradient is not.
            output.loss.register_hook(lambda gradient: gradient * math.inf)
        return output

    task.training_step = exploding  # type: ignore[method-assign]
    trainer = make(task, f"recipe.epochs={epochs}")
    with pytest.raises(NonFiniteLoss):
        trainer.fit()
    last = trainer.run.path / checkpoint.LAST
    if epochs == 1:
        assert not last.exists()
    else:
        state = checkpoint.load(last)
        assert state["epoch"] == 1
        assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())


@pytest.mark.parametrize("extra", [(), ("trainer.ema_decay=0.9", "recipe.gradient_clip=1.0")])
@pytest.mark.parametrize("stop", [(0, 1), (1, 0), (3, 2)])
def test_a_stopped_run_goes_on_to_the_same_end(
    stop: tuple[int, int], extra: tuple[str, ...], make: Make
) -> None:
    whole = make(Toy(), *extra, folder="whole")
    result = whole.fit()
    with pytest.raises(NonFiniteLoss):
        make(Toy(bad=stop), *extra).fit()
    resumed = make(Toy(), *extra)
    assert resumed.fit() == result
    assert journal(resumed) == journal(whole)
    for name in (checkpoint.LAST, checkpoint.BEST):
        same(checkpoint.load(resumed.run.path / name), checkpoint.load(whole.run.path / name))


def same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def test_someone_is_told_after_each_checkpoint(make: Make) -> None:
    told: list[int] = []
    trainer = make(Toy())
    trainer.on_checkpoint = lambda: told.append(checkpoint.load(trainer.run.path / "last.pt")["epoch"])
    trainer.fit()
    assert told == [1, 2, 3, 4]
    assert trainer.run.status()["epoch"] == 4


class Diverged(Toy):
    """Trains on, but what it computes from its weights is no number any more."""

    def evaluate(self, student: nn.Module, progress: Progress) -> dict[str, float]:
        return {**super().evaluate(student, progress), "test_loss": math.nan}


def test_an_epoch_whose_figures_are_not_finite_is_not_saved(make: Make) -> None:
    trainer = make(Diverged())
    with pytest.raises(NonFiniteLoss, match=r"diverged: after epoch 1 .*test_loss nan"):
        trainer.fit()
    assert not (trainer.run.path / checkpoint.LAST).exists()
