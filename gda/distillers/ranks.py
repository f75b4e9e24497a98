"""Rows of all processes of a run, for what must be the same in each of them: memory banks, statistics.

Without ``torch.distributed`` there is one process, and its rows are all rows.
"""

import torch
from torch import Tensor, distributed


def rank_count() -> int:
    """Returns the number of processes that train together; 1 without ``torch.distributed``."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather_rows(tensor: Tensor) -> Tensor:
    """Returns the rows of all ranks, in the order of the ranks, without gradient.

    Every rank must call it at the same point. The numbers of rows may differ, as those of a last batch
    do: shorter ones are padded for the transfer, and the padding is cut off again.

    Args:
        tensor: ``(rows, ...)``; all dimensions but the first are the same on all ranks, and so is the
            dtype.

    Returns:
        ``(rows of all ranks, ...)``, the same on every rank. Without ``torch.distributed`` the tensor
        itself, detached.

    Raises:
        ValueError: The tensor has no rows to speak of: it is a scalar.
    """
    if tensor.dim() == 0:
        raise ValueError("a scalar has no rows; give it one with reshape(1)")
    rows = tensor.detach()
    if rank_count() == 1:
        return rows
    counts = _everyone(torch.tensor([len(rows)], device=rows.device))
    lengths = [int(count) for count in torch.cat(counts).tolist()]
    missing = max(lengths) - len(rows)
    padded = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows
    gathered = _everyone(padded.contiguous())
    return torch.cat([part[:length] for part, length in zip(gathered, lengths, strict=True)])


def _everyone(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(rank_count())]
    distributed.all_gather(parts, tensor)
    return parts
