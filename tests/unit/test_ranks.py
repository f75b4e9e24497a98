"""What ranks tell each other, in two real processes and in one."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from gda.errors import RunInterrupted, UserError
from gda.ranks import (
    StoppedByMain,
    barrier,
    from_main,
    gather_objects,
    gather_rows,
    gather_rows_with_gradient,
    is_main,
    max_over_ranks,
    rank,
    rank_count,
    step_position,
    sum_over_ranks,
)

COUNTS: Sequence[tuple[int, int]] = ((2, 2), (3, 1), (0, 2))


def rows(of_rank: int, count: int) -> dict[str, Tensor]:
    values = 10 * of_rank + torch.arange(count * 3).reshape(count, 3)
    return {
        "integers": values[:, 0].contiguous(),
        "floats": values.double().requires_grad_(),
        "columns": values.t().contiguous().t().float(),  # not contiguous
        "booleans": values % 2 == 0,
    }


def images(count: int = 7) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def joint_loss(outputs: Tensor) -> Tensor:
    """Every row against every other: no mean over rows of what each of them says."""
    return torch.cdist(outputs, outputs).exp().sum() / 7 + outputs.prod(dim=0).sum()


CUTS = (4, 6)
"""How many of the images the first rank has: shares of 4 and 3, of 6 and 1."""


def gradients_of_share(own: Tensor, total: int) -> list[Tensor]:
    """The gradients after a step as a trainer makes it: the loss weighted by the share, then averaged."""
    student = model()
    wrapped = nn.parallel.DistributedDataParallel(student)
    outputs = wrapped(own)
    loss = joint_loss(gather_rows_with_gradient(outputs)) + outputs.square().mean()  # own rows used twice
    (loss * (len(own) * rank_count() / total)).backward()
    return [parameter.grad.clone() for parameter in student.parameters()]  # type: ignore[union-attr]


def failing(error: BaseException) -> Any:
    raise error


def outcome(error: BaseException) -> tuple[str, str, int | None]:
    """What a rank sees when rank 0 fails."""
    try:
        from_main(lambda: failing(error))
    except BaseException as seen:
        return type(seen).__name__, str(seen), getattr(seen, "exit_code", None)
    return "nothing", "", None


def unsendable() -> str:
    """What a rank sees when what rank 0 has can't be sent."""
    try:
        from_main(lambda: lambda: None)
    except Exception as seen:
        return type(seen).__name__
    return "nothing"


def work(number: int, meeting: str, results: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=2)
    whole = images()
    calls: list[int] = []
    found = {
        "who": (rank(), rank_count(), is_main()),
        "rows": [
            {name: gather_rows(value) for name, value in rows(number, counts[number]).items()}
            for counts in COUNTS
        ],
        "without rows": gather_rows_with_gradient(torch.ones(2 * number, 3, requires_grad=True)).detach(),
        "gradients": [
            gradients_of_share(whole[:cut] if number == 0 else whole[cut:], len(whole)) for cut in CUTS
        ],
        "sum": sum_over_ranks(torch.tensor([[1.0, 2.0**-40][number]])),
        "whole sum": sum_over_ranks(torch.tensor([[2**40 + number]])),
        "largest": (max_over_ranks(3 - number), max_over_ranks(2**60 + number)),
        "objects": gather_objects({"rank": number, "path": Path("a") / str(number)}),
        "from main": from_main(lambda: (calls.append(number), {"rank": number})[1]),
        "nothing": from_main(lambda: None),
        "calls": calls,
        "errors": [
            outcome(each)
            for each in (ValueError("no such thing"), RunInterrupted("Interrupted."), KeyboardInterrupt())
        ],
        "unsendable": unsendable(),
        "after": gather_objects(number),
    }
    barrier()
    torch.save(found, f"{results}/{number}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found; they are started once."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(work, (str(folder / "meeting"), str(folder)), nprocs=2)
    return [torch.load(folder / f"{number}.pt", weights_only=False) for number in (0, 1)]


def test_every_rank_gets_the_rows_of_all_in_order(found: list[dict[str, Any]]) -> None:
    assert [each["who"] for each in found] == [(0, 2, True), (1, 2, False)]
    for case, counts in enumerate(COUNTS):
        own = [rows(number, counts[number]) for number in (0, 1)]
        for name in own[0]:
            expected = torch.cat([each[name] for each in own]).detach()
            for each in found:
                gathered = each["rows"][case][name]
                assert torch.equal(gathered, expected), (counts, name)
                assert gathered.dtype is expected.dtype
                assert not gathered.requires_grad
    assert [each["without rows"].tolist() for each in found] == [[[1.0] * 3] * 2] * 2


def test_gradients_of_a_joint_loss_are_those_of_one_process(found: list[dict[str, Any]]) -> None:
    for case in range(len(CUTS)):
        student, whole = model(), images()
        outputs = student(whole)
        (joint_loss(outputs) + outputs.square().mean()).backward()
        for each in found:
            for parameter, gradient in zip(student.parameters(), each["gradients"][case], strict=True):
                torch.testing.assert_close(gradient, parameter.grad, rtol=1e-12, atol=1e-13)


def test_numbers_and_objects_of_all_ranks(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert each["sum"].dtype is torch.float64
        assert each["sum"].tolist() == [1 + 2**-40]  # as float32 could not hold it
        assert each["whole sum"].tolist() == [[2**41 + 1]]
        assert each["largest"] == (3, 2**60 + 1)
        assert [one["rank"] for one in each["objects"]] == [0, 1]
        assert each["after"] == [0, 1]


def test_rank_0_computes_and_all_get_it(found: list[dict[str, Any]]) -> None:
    assert [each["from main"] for each in found] == [{"rank": 0}] * 2
    assert [each["nothing"] for each in found] == [None] * 2
    assert [each["calls"] for each in found] == [[0], []]


def test_what_stops_rank_0_stops_the_others_with_its_reason(found: list[dict[str, Any]]) -> None:
    first, other = (each["errors"] for each in found)
    assert first == [
        ("ValueError", "no such thing", None),
        ("RunInterrupted", "Interrupted.", 130),
        ("KeyboardInterrupt", "", None),
    ]
    assert [(name, code) for name, _, code in other] == [
        ("StoppedByMain", 1),
        ("StoppedByMain", 130),
        ("StoppedByMain", 1),
    ]
    assert [text.rpartition(": ")[2] for _, text, _ in other] == [
        "no such thing",
        "Interrupted.",
        "KeyboardInterrupt",
    ]
    assert issubclass(StoppedByMain, UserError)
    assert [each["unsendable"] == "StoppedByMain" for each in found] == [False, True]
    assert "nothing" not in [each["unsendable"] for each in found]


def test_one_process_needs_nobody() -> None:
    assert (rank(), rank_count(), is_main()) == (0, 1, True)
    tensor = torch.ones(3, 2, requires_grad=True)
    gathered = gather_rows(tensor)
    assert torch.equal(gathered, tensor)
    assert not gathered.requires_grad
    assert gather_rows_with_gradient(tensor) is tensor
    total = sum_over_ranks(tensor)
    assert (total.dtype, total.requires_grad, total.sum()) == (torch.float64, False, 6)
    double = torch.ones(2, dtype=torch.float64)
    sum_over_ranks(double).add_(1)
    assert double.tolist() == [1, 1]  # a new tensor, even where nothing changes
    assert max_over_ranks(-4) == -4
    assert gather_objects("x") == ["x"]
    assert from_main(lambda: 3) == 3
    with pytest.raises(ValueError, match="as it is"):
        from_main(lambda: failing(ValueError("as it is")))
    barrier()


@pytest.mark.parametrize("gather", [gather_rows, gather_rows_with_gradient])
def test_a_scalar_has_no_rows(gather: Any) -> None:
    with pytest.raises(ValueError, match="no rows"):
        gather(torch.tensor(1.0))


def test_each_rank_and_part_has_a_place_of_its_own() -> None:
    places = {step_position(1, 2, each, part) for each in range(3) for part in range(3)}
    assert len(places) == 9
    assert step_position(1, 2) == (1, 2)


def test_asking_for_the_rank_imports_no_torch() -> None:
    code = "import sys, gda.ranks as r; print(r.rank_count(), r.from_main(int), 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["1", "0", "False"]
