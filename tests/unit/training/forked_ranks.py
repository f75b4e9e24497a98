"""Runs a function on several ranks: one process imports torch, stays, and forks them."""

import atexit
import functools
import importlib
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed

PATIENCE = 120.0  # a limit for what hangs, not a claim about speed


def on_ranks(
    ranks: int, work: Callable[[int], Any], folder: Path, loads_optimizers: bool = False
) -> list[Any]:
    """Returns what `work(rank)` returns on each rank, all of one process group."""
    connection = _forker()
    connection.send((ranks, work, str(folder), loads_optimizers))
    if not connection.poll(PATIENCE):
        _forker.cache_clear()
        raise AssertionError("the ranks do not end")
    worked = connection.recv()
    assert worked, "\n".join(path.read_text() for path in sorted(folder.glob("*.error"))) or "a rank died"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


@functools.cache
def _forker() -> Connection:
    """Starts the process that forks; it ends with this one."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=_fork, args=(theirs,)).start()
    theirs.close()
    atexit.register(ours.close)  # before multiprocessing waits for it
    return ours


def _fork(connection: Connection) -> None:
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    while True:
        try:
            ranks, work, folder, loads_optimizers = connection.recv()
        except EOFError:
            return
        if loads_optimizers:
            importlib.import_module("torch._dynamo")  # an optimiser's first step does, which takes a second
        children = [
            context.Process(target=_be, args=(rank, ranks, work, folder), daemon=True)
            for rank in range(ranks)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join()
        connection.send(not any(child.exitcode for child in children))


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
