"""Runs a function on several ranks: one fresh process imports torch, and forks them."""

import importlib
import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

PATIENCE = 120.0  # a limit for what hangs, not a claim about speed


def on_ranks(
    ranks: int, work: Callable[[int], Any], folder: Path, loads_optimizers: bool = False
) -> list[Any]:
    """Returns what `work(rank)` returns on each rank, all of one process group."""
    process = multiprocessing.get_context("spawn").Process(
        target=_fork, args=(ranks, work, str(folder), loads_optimizers)
    )
    process.start()
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
    errors = "\n".join(path.read_text() for path in sorted(folder.glob("*.error")))
    assert process.exitcode == 0, errors or "the ranks did not end"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def _fork(ranks: int, work: Callable[[int], Any], folder: str, loads_optimizers: bool) -> None:
    torch.set_num_threads(1)
    if loads_optimizers:
        importlib.import_module(
            "torch._dynamo"
        )  # as the first step of an optimiser does, which takes a second
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=_be, args=(rank, ranks, work, folder), daemon=True) for rank in range(ranks)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    if any(child.exitcode for child in children):
        raise SystemExit(1)


def _be(rank: int, ranks: int, work: Callable[[int], Any], folder: str) -> None:
    try:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks
        )
        torch.save(work(rank), f"{folder}/{rank}.pt")
        distributed.destroy_process_group()
    except BaseException:
        Path(folder, f"{rank}.error").write_text(traceback.format_exc())
        raise
