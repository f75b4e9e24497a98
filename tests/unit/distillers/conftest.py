from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from gda.distillers import ModelOutput, Progress, TermInputs


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from more threads, and wait for them on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def logits() -> Callable[..., tuple[Tensor, Tensor]]:
    """Makes a student and a teacher logit matrix, float64 unless said otherwise."""

    def make(
        batch: int = 6, classes: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        student = 2 * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
        teacher = 3 * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
        return student.to(dtype).requires_grad_(), teacher.to(dtype)

    return make


@pytest.fixture
def inputs() -> Callable[..., TermInputs]:
    """Wraps logits as a term sees them."""

    def make(
        student: Tensor,
        teacher: Tensor | None = None,
        targets: Tensor | None = None,
        progress: Progress | None = None,
    ) -> TermInputs:
        return TermInputs(
            images=torch.zeros(len(student), 3, 1, 1),
            targets=torch.zeros(len(student), dtype=torch.long) if targets is None else targets,
            indices=torch.arange(len(student)),
            student=ModelOutput(student),
            teacher=None if teacher is None else ModelOutput(teacher),
            progress=progress or Progress(0, 1),
            generator=torch.Generator(),
        )

    return make
