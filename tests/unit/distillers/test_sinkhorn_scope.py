"""Sinkhorn over two real processes: globally it is one process with the joint batch, locally it is not."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from gda.distillers import Distiller, ModelOutput, Progress, TermInputs
from gda.distillers.ground_truth import Labels
from gda.distillers.kd import KD
from gda.distillers.sinkhorn import Sinkhorn
from gda.models import create_model
from gda.ranks import rank_count

IMAGES = 7
CLASSES = 5


@dataclass(frozen=True)
class Case:
    """A loss, and how many images the first of two processes has."""

    first: int
    weight: float = 0.7
    options: dict[str, Any] = field(default_factory=dict)
    parts: int = 1

    def distiller(self, scope: str) -> Distiller:
        terms = {"kd": (KD(), 0.9), "sinkhorn": (Sinkhorn(scope=scope, **self.options), self.weight)}  # type: ignore[arg-type]
        return Distiller(Labels(), 0.3, terms)

    def shares(self) -> list[slice]:
        return [slice(self.first), slice(self.first, None)]


CASES = {
    "even, sum": Case(4, options={"iterations": 5}),
    "uneven, sum": Case(5),
    "uneven, mean": Case(6, 2.5, {"reduction": "mean", "epsilon": 0.3}),
    "one image, debiased sum": Case(6, 0.2, {"debias": True}),
    "debiased mean, on logarithms": Case(3, 1.3, {"reduction": "mean", "debias": True, "epsilon": 0.004}),
    "in two parts": Case(4, 1.1, {}, 2),
}


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and the teacher's logits; float64."""
    draws = torch.Generator().manual_seed(1)
    images = torch.randn(IMAGES, 3, 8, 8, generator=draws, dtype=torch.float64)
    labels = torch.randint(CLASSES, (IMAGES,), generator=draws)
    return images, labels, 3 * torch.randn(IMAGES, CLASSES, generator=draws, dtype=torch.float64)


def student_of() -> nn.Module:
    """A small ResNet whose batch norm is as in evaluation: that of a share is not that of a batch."""
    torch.manual_seed(2)
    return create_model("resnet8", CLASSES).double().eval()


def loss_of(distiller: Distiller, student: nn.Module, of_batch: slice) -> tuple[Tensor, dict[str, Tensor]]:
    images, labels, teacher = (values[of_batch] for values in batch())
    return distiller(
        TermInputs(
            images=images,
            targets=labels,
            indices=torch.arange(IMAGES)[of_batch],
            student=ModelOutput(student(images)),
            teacher=ModelOutput(teacher),
            progress=Progress(0, 1),
            generator=torch.Generator(),
        )
    )


def gradients_of(student: nn.Module) -> dict[str, Tensor]:
    return {name: each.grad for name, each in student.named_parameters() if each.grad is not None}


def split(share: slice, parts: int) -> list[slice]:
    places = torch.arange(IMAGES)[share].tensor_split(parts)
    return [slice(int(each[0]), int(each[-1]) + 1) for each in places]


def trained(case: Case, scope: str, number: int) -> dict[str, Any]:
    """One step as a trainer makes it: each part's loss weighted by its images, gradients averaged by DDP."""
    student = student_of()
    wrapped = nn.parallel.DistributedDataParallel(student)
    parts, values = split(case.shares()[number], case.parts), []
    for place, part in enumerate(parts):
        wrapped.require_backward_grad_sync = place == len(parts) - 1
        loss, terms = loss_of(case.distiller(scope), wrapped, part)
        (loss * ((part.stop - part.start) * rank_count() / IMAGES)).backward()
        values.append(terms["sinkhorn"])
    return {"gradients": gradients_of(student), "values": values}


def work(number: int, meeting: str, results: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=2)
    found = {
        (name, scope): trained(case, scope, number)
        for name, case in CASES.items()
        for scope in ("global", "local")
    }
    torch.save(found, f"{results}/{number}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], dict[str, Any]]]:
    """What two processes found; they are started once."""
    folder: Path = tmp_path_factory.mktemp("scope")
    multiprocessing.spawn(work, (str(folder / "meeting"), str(folder)), nprocs=2)
    return [torch.load(folder / f"{number}.pt") for number in (0, 1)]


def alone(case: Case, shares: list[tuple[float, slice]]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Gradients and values of one process that adds up the losses of some images, each times a factor."""
    student, values = student_of(), []
    for factor, share in shares:
        loss, terms = loss_of(case.distiller("local"), student, share)
        (factor * loss).backward()
        values.append(terms["sinkhorn"])
    return gradients_of(student), values


def assert_same(gradients: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert gradients.keys() == expected.keys()
    largest = max(float(each.abs().max()) for each in expected.values())
    for name, each in expected.items():
        torch.testing.assert_close(gradients[name], each, rtol=0, atol=1e-12 * largest)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.parts == 1])
def test_globally_two_processes_are_one_with_the_joint_batch(name: str, found: list[dict]) -> None:
    gradients, (value,) = alone(CASES[name], [(1.0, slice(None))])
    for each in found:
        of_rank = each[name, "global"]
        assert of_rank["values"][0].item() == pytest.approx(value.item(), rel=1e-12)
        assert_same(of_rank["gradients"], gradients)


def test_globally_a_part_is_that_of_all_processes(found: list[dict]) -> None:
    """The parts of both processes together: images 0, 1, 4, 5 first, then 2, 3, 6."""
    case = CASES["in two parts"]
    shares = [split(share, 2) for share in case.shares()]
    student, values, whole = student_of(), [], batch()
    for pair in zip(*shares, strict=True):
        places = torch.cat([torch.arange(IMAGES)[each] for each in pair])
        images, labels, teacher = (each[places] for each in whole)
        inputs = TermInputs(
            images, labels, places, ModelOutput(student(images)), ModelOutput(teacher), Progress(0, 1),
            torch.Generator(),
        )  # fmt: skip
        loss, terms = case.distiller("local")(inputs)
        (loss * (len(places) / IMAGES)).backward()
        values.append(terms["sinkhorn"].item())
    for each in found:
        of_rank = each["in two parts", "global"]
        assert [value.item() for value in of_rank["values"]] == pytest.approx(values, rel=1e-12)
        assert_same(of_rank["gradients"], gradients_of(student))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.parts == 1])
def test_locally_it_is_the_mean_over_the_images_of_what_each_process_finds(
    name: str, found: list[dict]
) -> None:
    case = CASES[name]
    shares = [(len(range(IMAGES)[share]) / IMAGES, share) for share in case.shares()]
    gradients, values = alone(case, shares)
    for number, each in enumerate(found):
        of_rank = each[name, "local"]
        assert of_rank["values"][0].item() == pytest.approx(values[number].item(), rel=1e-12)
        assert_same(of_rank["gradients"], gradients)
    joint, _ = alone(case, [(1.0, slice(None))])
    with pytest.raises(AssertionError):
        assert_same(found[0][name, "local"]["gradients"], joint)


def test_a_local_sum_is_about_half_of_the_joint_one(found: list[dict]) -> None:
    _, (joint,) = alone(CASES["even, sum"], [(1.0, slice(None))])
    local = [each["even, sum", "local"]["values"][0].item() for each in found]
    mean = (4 * local[0] + 3 * local[1]) / 7
    assert 0.4 * joint.item() < mean < 0.75 * joint.item()


def test_alone_the_scope_changes_nothing() -> None:
    case, student = CASES["uneven, sum"], student_of()
    values = [loss_of(case.distiller(scope), student, slice(None))[0] for scope in ("local", "global")]
    assert torch.equal(*values)
