"""The processes (ranks) that train one run together: who is who, and what they tell each other.

Every rank must call each of these functions at the same point. Without a process group there is one
process: it has rank 0, its rows are all rows, and nothing waits. Tensors may lie on the CPU or on a GPU
where the group has a backend for both (``cpu:gloo,cuda:nccl``); what is no tensor travels on the CPU.

**Which gradient is whose.** A rank with ``n`` of the ``M`` images of a step on ``N`` ranks weights its loss
by ``n * N / M``, and averaging over ranks then makes the gradient of all images::

    1/N sum_r (n_r N / M) dL_r  =  sum_r (n_r / M) dL_r                     (L_r: mean over the rank's images)

A loss ``J`` of the rows of all ranks is the same on each of them, and of its gradient a rank knows the part
that goes through its own rows ``x_r``. The parts have to be added, and are averaged with that weight. So
what flows into a rank's own rows is multiplied by ``M / n_r``::

    1/N sum_r (n_r N / M) (M / n_r) dJ/dx_r dx_r  =  sum_r dJ/dx_r dx_r  =  dJ
"""

import pickle
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from gda.errors import UserError

if TYPE_CHECKING:  # processes that compute nothing ask for their rank, too, and torch is slow to import
    from torch import Tensor

T = TypeVar("T")


class StoppedByMain(UserError):
    """Rank 0 could not do what all ranks wait for."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(f"Process 0 stopped this run: {reason}")
        self.exit_code = exit_code


def rank() -> int:
    """Returns the number of this process, from 0."""
    return 0 if _group() is None else int(_group().get_rank())


def rank_count() -> int:
    """Returns the number of processes that train together; 1 without a process group."""
    return 1 if _group() is None else int(_group().get_world_size())


def is_main() -> bool:
    """Says whether this process is the one that writes: rank 0."""
    return rank() == 0


def step_position(epoch: int, step: int, rank: int = 0, part: int = 0) -> tuple[str | int, ...]:
    """Names the place of a random stream of which every rank and every part of a step has its own.

    One process that takes its batches whole has the streams ``(epoch, step)``.

    Args:
        epoch: The epoch, from 0.
        step: The step within it, from 0.
        rank: Number of the process.
        part: Number of the part into which a rank's batch is split.
    """
    return (epoch, step) if rank == part == 0 else (epoch, step, "rank", rank, "part", part)


def gather_rows(tensor: "Tensor") -> "Tensor":
    """Returns the rows of all ranks, in the order of the ranks, without gradient.

    The numbers of rows may differ, as those of a last batch do: shorter ones are padded for the transfer,
    and the padding is cut off again.

    Args:
        tensor: ``(rows, ...)``; all dimensions but the first are the same on all ranks, and so is the
            dtype.

    Returns:
        ``(rows of all ranks, ...)``, the same on every rank. For one process the tensor itself, detached.

    Raises:
        ValueError: The tensor has no rows to speak of: it is a scalar.
    """
    import torch

    if tensor.dim() == 0:
        raise ValueError("a scalar has no rows; give it one with reshape(1)")
    if rank_count() == 1:
        return tensor.detach()
    return torch.cat(_rows_by_rank(tensor.detach()))


def gather_rows_with_gradient(tensor: "Tensor") -> "Tensor":
    """Returns the rows of all ranks, in the order of the ranks; gradient flows into the own rows.

    For losses of the rows of all ranks, which every rank computes alike. Backward gives the own rows their
    gradient times (rows of all ranks / own rows), so that the gradients of the model are those of one process
    with all rows, once a rank's loss has been weighted by its share and gradients averaged (see above).

    Args:
        tensor: As in :func:`gather_rows`.

    Returns:
        ``(rows of all ranks, ...)``, of equal values on every rank. For one process the tensor itself.

    Raises:
        ValueError: As in :func:`gather_rows`.
    """
    import torch

    if tensor.dim() == 0:
        raise ValueError("a scalar has no rows; give it one with reshape(1)")
    if rank_count() == 1:
        return tensor
    parts = _rows_by_rank(tensor.detach())
    own = tensor.view_as(tensor)  # a hook on the tensor itself would reach its other uses, too
    if own.requires_grad and len(own):
        factor = sum(len(part) for part in parts) / len(own)
        own.register_hook(lambda gradient: gradient * factor)
    parts[rank()] = own
    return torch.cat(parts)


def sum_over_ranks(tensor: "Tensor") -> "Tensor":
    """Returns the element-wise sum over all ranks, a new float64 tensor.

    Args:
        tensor: Of one shape on all ranks. Whole numbers up to 2**53 are summed exactly.
    """
    import torch

    total = tensor.detach().to(torch.float64, copy=True).contiguous()
    if rank_count() > 1:
        _group().all_reduce(total)
    return total


def max_over_ranks(value: int) -> int:
    """Returns the largest of the ranks' numbers, each below 2**63."""
    if rank_count() == 1:
        return value
    import torch

    largest = torch.tensor([value], dtype=torch.int64)
    _group().all_reduce(largest, op=_group().ReduceOp.MAX)
    return int(largest.item())


def gather_objects(value: T) -> list[T]:
    """Returns the values of all ranks, in their order; anything that can be pickled."""
    if rank_count() == 1:
        return [value]
    values: list[Any] = [None] * rank_count()
    _group().all_gather_object(values, value)
    return values


def from_main(compute: Callable[[], T]) -> T:
    """Lets rank 0 compute something, and gives it to all ranks.

    Args:
        compute: Called on rank 0 alone; its value must be one that can be pickled, which is an error of
            rank 0 else.

    Raises:
        StoppedByMain: On the ranks above 0, when ``compute`` raises. On rank 0 the error itself is raised.
    """
    if rank_count() == 1:
        return compute()
    if not is_main():
        message: list[Any] = [None]
        _group().broadcast_object_list(message, src=0)
        content, failure = message[0]
        if failure is not None:
            raise StoppedByMain(*failure)
        result: T = pickle.loads(content)
        return result
    try:
        value = compute()
        message = [(pickle.dumps(value), None)]
    except BaseException as error:  # Ctrl-C, too: the others are waiting
        reason = str(error) or type(error).__name__
        message = [(None, (reason, getattr(error, "exit_code", UserError.exit_code)))]
        raise
    finally:
        _group().broadcast_object_list(message, src=0)
    return value


def barrier() -> None:
    """Waits until every rank is here. Work that a GPU has not done yet is not waited for."""
    max_over_ranks(0)


def _group() -> Any:
    """Returns ``torch.distributed`` where it has a process group; there is none where it isn't imported."""
    distributed = sys.modules.get("torch.distributed")
    joined = distributed is not None and distributed.is_available() and distributed.is_initialized()
    return distributed if joined else None


def _rows_by_rank(rows: "Tensor") -> "list[Tensor]":
    """Returns each rank's rows."""
    import torch

    lengths = _everyone(torch.tensor([len(rows)]))  # on the CPU, so that no GPU is waited for
    counts = [int(length.item()) for length in lengths]
    missing = max(counts) - len(rows)
    padded = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows
    gathered = _everyone(padded.contiguous())
    return [part[:count] for part, count in zip(gathered, counts, strict=True)]


def _everyone(tensor: "Tensor") -> "list[Tensor]":
    import torch

    parts = [torch.empty_like(tensor) for _ in range(rank_count())]
    _group().all_gather(parts, tensor)
    return parts
