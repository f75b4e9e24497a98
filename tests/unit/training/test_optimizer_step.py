"""One step of the optimiser: however its batch is shared and parted, the weights are those of one process."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from forked_ranks import on_ranks
from torch import Tensor, nn
from torch.nn import functional

from gda.config.schema import TrainerSettings
from gda.data.loader import Batch
from gda.distillers.term import Progress
from gda.errors import UserError
from gda.ranks import rank, rank_count
from gda.tasks.task import StepOutput
from gda.training.dot import DOT
from gda.training.precision import Precision
from gda.training.step import OptimizerStep

CPU = torch.device("cpu")
SIZES = (9, 8, 7, 5)
"""Images of the steps: on two ranks shares of 5 and 4, 4 and 4, 4 and 3, 3 and 2."""
Losses = Literal["both", "supervised", "distilled"]


@dataclass(frozen=True)
class Case:
    """What is trained, and how."""

    accumulation: int = 1
    clip: float | None = None
    dot: bool = False
    losses: Losses = "both"
    unused: bool = False
    find_unused: bool = False
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    dtype: torch.dtype = torch.float64
    explodes_at: int | None = None
    """The step in which the gradients of the last rank are not finite."""


CASES = {
    "plain": Case(),
    "accumulation 2": Case(accumulation=2),
    "clipping": Case(clip=0.05),
    "clipping, accumulation 2": Case(clip=0.05, accumulation=2),
    "DOT": Case(dot=True),
    "DOT, clipping": Case(dot=True, clip=0.05),
    "DOT, labels alone": Case(dot=True, losses="supervised"),
    "DOT, teacher alone": Case(dot=True, losses="distilled"),
    "unused": Case(unused=True, find_unused=True),
    "unused, accumulation 2": Case(unused=True, find_unused=True, accumulation=2),
}
SMOKE = {
    "bfloat16": Case(precision="bfloat16", dtype=torch.float32),
    "float16": Case(precision="float16", dtype=torch.float32, accumulation=2),
    "float16, too large": Case(precision="float16", dtype=torch.float32, explodes_at=1),
}


class Learner(nn.Module):
    """A student, and a projector that the distillation loss alone reaches; no batch norm."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.case = case
        self.student = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 4))
        self.projector = nn.ModuleDict({"used": nn.Linear(4, 5)})
        if case.unused:
            self.projector["unused"] = nn.Linear(4, 5)
        self.to(case.dtype)
        self.modules_ = {"student": self.student, "projector": self.projector}
        self.draws: list[tuple[int, int, int, float]] = []

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.student(batch.images)
        projected = self.projector["used"](logits.tanh())
        # Powers, so that no image counts like another.
        return functional.cross_entropy(logits, batch.targets), projected.pow(4).mean() + logits.pow(2).mean()

    def training_step(self, batch: Batch, progress: Progress) -> StepOutput:
        self.draws.append((progress.step, progress.rank, progress.part, float(torch.rand(()))))
        supervised, distilled = self.losses(batch)
        apart = {"both": (supervised, distilled), "supervised": (supervised, None)}
        first, second = apart.get(self.case.losses, (None, distilled))
        loss = sum(each for each in (first, second) if each is not None)
        assert isinstance(loss, Tensor)
        if progress.step == self.case.explodes_at and progress.rank == rank_count() - 1:
            loss.register_hook(lambda gradient: gradient * torch.inf)
        return StepOutput(loss, {}, len(batch), {}, first, second)


class Task:
    """What an optimiser's step asks of a task."""

    def __init__(self, learner: Learner) -> None:
        self.modules, self.training_step = learner.modules_, learner.training_step


def batches(dtype: torch.dtype) -> Iterator[Batch]:
    """This process's shares."""
    generator = torch.Generator().manual_seed(5)
    for size in SIZES:
        images = torch.randn(size, 3, 2, 2, generator=generator, dtype=torch.float64).to(dtype)
        targets = torch.randint(4, (size,), generator=generator)
        parts = (each.tensor_split(rank_count())[rank()] for each in (images, targets, torch.arange(size)))
        yield Batch(*parts, total=size)


def train(case: Case) -> dict[str, Any]:
    learner = Learner(case)
    parameters = list(learner.parameters())
    optimizer: torch.optim.Optimizer = (
        DOT(parameters, lr=0.1, momentum=0.8, weight_decay=0.01)
        if case.dot
        else torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    )
    settings = TrainerSettings(
        "cpu",
        case.precision,
        None,
        False,
        False,
        True,
        1,
        10,
        accumulation=case.accumulation,
        find_unused_parameters=case.find_unused,
    )
    precision = Precision(case.precision, CPU)
    step = OptimizerStep(Task(learner), optimizer, precision, settings, case.clip, seed=0)  # type: ignore[arg-type]
    images, weights, scales = [], [], []
    for number, batch in enumerate(batches(case.dtype)):
        outputs = step(batch, Progress(0, 1, number, len(SIZES)))
        assert not any(each.loss.requires_grad for each in outputs)
        images.append([each.images for each in outputs])
        weights.append({name: value.detach().clone() for name, value in learner.named_parameters()})
        scales.append(precision.scaler.get_scale())
    return {"weights": weights, "images": images, "draws": learner.draws, "scales": scales}


def refused() -> str:
    """What is said of a parameter that no loss reaches, where nobody has asked for it to be found."""
    try:
        train(Case(unused=True))
    except (UserError, RuntimeError) as error:
        return str(error)
    return ""


def work(_: int) -> dict[str, Any]:
    found: dict[str, Any] = {name: train(case) for name, case in {**CASES, **SMOKE}.items()}
    return {**found, "refused": refused()}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found; they are started once."""
    return on_ranks(2, work, tmp_path_factory.mktemp("ranks"), loads_optimizers=True)


def joint(case: Case) -> dict[str, Any]:
    """The same by one process that takes every batch whole."""
    return train(Case(clip=case.clip, dot=case.dot, losses=case.losses, unused=case.unused))


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    for step, (weights, expected) in enumerate(zip(one["weights"], other["weights"], strict=True)):
        for name, value in expected.items():
            what = f"{name} after step {step + 1}"
            torch.testing.assert_close(
                weights[name], value, rtol=1e-12, atol=1e-13, msg=lambda text, what=what: f"{what}: {text}"
            )


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_learn_what_one_process_learns_from_the_joint_batch(
    name: str, found: list[dict[str, Any]]
) -> None:
    for each in found:
        assert_close(each[name], joint(CASES[name]))


@pytest.mark.parametrize("name", CASES)
def test_ranks_never_part_by_a_single_bit(name: str, found: list[dict[str, Any]]) -> None:
    first, second = (each[name]["weights"] for each in found)
    for step, weights in enumerate(first):
        assert all(torch.equal(value, second[step][each]) for each, value in weights.items())


@pytest.mark.parametrize("accumulation", [2, 3])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_accumulation_changes_nothing(accumulation: int, clip: float | None) -> None:
    case = Case(accumulation=accumulation, clip=clip)
    parted = train(case)
    assert_close(parted, joint(case))
    assert [len(each) for each in parted["images"]] == [accumulation] * len(SIZES)
    assert [sum(each) for each in parted["images"]] == list(SIZES)


def test_the_cases_differ() -> None:
    """Or they would show nothing."""
    whole = [joint(case)["weights"][-1]["student.1.weight"] for case in CASES.values()]
    distinct = {tuple(weights.flatten().tolist()) for weights in whole}
    assert len(distinct) == 6  # plain, clipping, DOT, DOT with clipping, with one loss or the other


def test_each_rank_counts_its_own_images(found: list[dict[str, Any]]) -> None:
    assert [each["plain"]["images"] for each in found] == [[[5], [4], [4], [3]], [[4], [4], [3], [2]]]
    assert [each["accumulation 2"]["images"] for each in found] == [
        [[3, 2], [2, 2], [2, 2], [2, 1]],
        [[2, 2], [2, 2], [2, 1], [1, 1]],
    ]


def test_every_step_rank_and_part_draws_for_itself(found: list[dict[str, Any]]) -> None:
    alone = train(Case())["draws"]
    assert found[0]["plain"]["draws"] == alone, "the first rank draws what one process draws"
    parted = train(Case(accumulation=2))["draws"]
    assert [draw for draw in parted if draw[2] == 0] == alone, "and so does the first part"
    of_both = [draw for each in found for draw in each["accumulation 2"]["draws"]]
    places = {(step, of_rank, part) for step, of_rank, part, _ in of_both}
    assert places == {(step, of_rank, part) for step in range(4) for of_rank in (0, 1) for part in (0, 1)}
    assert len({value for *_, value in of_both}) == len(of_both) == 16


@pytest.mark.parametrize("name", SMOKE)
def test_ranks_agree_in_less_precision(name: str, found: list[dict[str, Any]]) -> None:
    first, second = (each[name] for each in found)
    start = dict(Learner(SMOKE[name]).named_parameters())
    for each, value in first["weights"][-1].items():
        assert torch.equal(value, second["weights"][-1][each])
        assert value.dtype is torch.float32
        assert value.isfinite().all()
        assert not torch.equal(value, start[each])
    assert first["scales"] == second["scales"]


def test_a_gradient_too_large_on_one_rank_makes_all_skip_the_step(found: list[dict[str, Any]]) -> None:
    for each in found:
        before, after, later = each["float16, too large"]["weights"][:3]
        assert all(torch.equal(value, before[name]) for name, value in after.items())
        assert not any(torch.equal(value, before[name]) for name, value in later.items())
        scales = each["float16, too large"]["scales"]
        assert scales[1] == scales[0] / 2


def test_a_parameter_that_no_loss_reaches_is_named_with_what_to_type(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert "trainer.find_unused_parameters=true" in each["refused"]
