"""The memory banks of CRD in two real processes are those of one."""

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from gda.distillers import ModelOutput, Progress, RunFacts, TermInputs
from gda.distillers.crd import CRD
from gda.models.tap_descriptions import TapDescription

LABELS = torch.arange(40) % 4
STEPS = ([3, 0, 7, 10, 22, 31, 5], [1, 3, 11, 12, 39, 8, 20], [2, 0, 5, 6, 13])
"""Images of each step of a joint batch; the last one is smaller."""
CUTS = (4, 4, 4)
"""How many of them the first rank has; the second one has fewer, one in the last step."""


def crd_term() -> CRD:
    described = ({"pooled": TapDescription("", (width,), None, True)} for width in (5, 7))
    term = CRD(negatives=12, width=4)
    torch.manual_seed(0)
    term.setup(RunFacts(4, len(LABELS), LABELS, *described))
    return term.double()


def crd_inputs(step: int, of_batch: slice) -> TermInputs:
    indices = STEPS[step]
    generator = torch.Generator().manual_seed(step)
    student, teacher = (
        torch.randn(len(indices), width, generator=generator, dtype=torch.float64)[of_batch]
        for width in (5, 7)
    )
    return TermInputs(
        images=torch.zeros(len(student), 3, 1, 1),
        targets=LABELS[indices][of_batch],
        indices=torch.tensor(indices)[of_batch],
        student=ModelOutput(torch.zeros(len(student), 4), {"pooled": student}),
        teacher=ModelOutput(torch.zeros(len(student), 4), {"pooled": teacher}),
        progress=Progress(0, 1),
        generator=torch.Generator().manual_seed(step),
    )


def work(rank: int, meeting: str, results: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    term, losses, banks = crd_term(), [], []
    for step, cut in enumerate(CUTS):
        losses.append(term(crd_inputs(step, slice(cut) if rank == 0 else slice(cut, None))).detach())
        banks.append({name: value.clone() for name, value in term.named_buffers()})
    torch.save({"losses": losses, "banks": banks}, f"{results}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What two processes found; they are started once."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(work, (str(folder / "meeting"), str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_banks_of_crd_are_those_of_one_process_with_the_joint_batch(found: list[dict]) -> None:
    term = crd_term()
    for step, indices in enumerate(STEPS):
        loss = term(crd_inputs(step, slice(None)))
        first, second = (each["banks"][step] for each in found)
        for name, joint in term.named_buffers():
            assert torch.equal(first[name], second[name]), (step, name)
            torch.testing.assert_close(first[name], joint, rtol=1e-13, atol=0)
        # The joint loss is the mean over all images, so each rank counts by how many it has.
        share = CUTS[step] / len(indices)
        parts = [each["losses"][step] for each in found]
        assert loss.item() == pytest.approx((share * parts[0] + (1 - share) * parts[1]).item(), rel=1e-12)
    assert (term.normalisation > 0).all()
