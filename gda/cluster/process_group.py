"""Joins the processes that train one run together, however they were started.

torchrun says who is who in ``RANK``, ``LOCAL_RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``; the
tasks that SLURM starts find the same in variables of its own. One process on its own joins nothing.
"""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager

from gda.errors import UserError

_PATIENCE = datetime.timedelta(hours=12)
"""How long one process waits for another, which may be fetching weights or training a teacher. A process
that has died is noticed at once, by the connections that it leaves."""


@contextmanager
def joined(device: str = "auto") -> Iterator[None]:
    """Makes this process one of those that its environment describes, within the block.

    With GPUs, each process takes the one of its local rank. On the CPU they talk through gloo, on GPUs
    through nccl.

    Args:
        device: ``trainer.device``.

    Raises:
        UserError: The others can't be reached.
    """
    _describe_slurm_step()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    import torch
    from torch import distributed

    if distributed.is_initialized():  # by the one who called
        yield
        return
    on_gpu = torch.cuda.is_available() and device in ("auto", "cuda")
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"Process {os.environ.get('RANK')} of {os.environ['WORLD_SIZE']} could not join the others at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}: {error}"
        ) from error
    yield
    distributed.destroy_process_group()  # not after an error: it would wait for those that are gone


def _describe_slurm_step() -> None:
    """Says in torchrun's words what SLURM says of the tasks of a step; nothing outside of one.

    A shell within an allocation is no step of several tasks, whatever the allocation could hold.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if "WORLD_SIZE" in os.environ or tasks == 1:
        return
    import submitit

    own_name = "SUBMITIT_EXECUTOR" not in os.environ  # started by srun itself
    if own_name:
        os.environ["SUBMITIT_EXECUTOR"] = "slurm"
    try:
        submitit.helpers.TorchDistributedEnvironment().export(overwrite=True, set_cuda_visible_devices=False)
    finally:
        if own_name:
            del os.environ["SUBMITIT_EXECUTOR"]
