"""What of this machine each of several runs side by side gets: threads and GPUs."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_DRIVER = Path("/proc/driver/nvidia/gpus")
_DEVICES = Path("/dev")


@dataclass(frozen=True)
class MachineShare:
    """The share of one run.

    Attributes:
        threads: CPU threads of each of its processes.
        gpus: Names of its GPUs, as in ``CUDA_VISIBLE_DEVICES``; None leaves it all that there are.
    """

    threads: int
    gpus: tuple[str, ...] | None


def shares(at_once: int, ranks: int = 1, environment: Mapping[str, str] = os.environ) -> list[MachineShare]:
    """Divides the machine among runs, the GPUs round robin.

    Args:
        at_once: Runs that go on at a time.
        ranks: Processes of each.
        environment: Says which GPUs there are, and how many CPUs SLURM has given.
    """
    threads = max(1, cpu_count(environment) // (at_once * ranks))
    gpus = visible_gpus(environment)
    if at_once == 1 or len(gpus) < 2 or len(gpus) < ranks:
        return [MachineShare(threads, None)] * at_once
    return [
        MachineShare(threads, tuple(gpus[(slot * ranks + rank) % len(gpus)] for rank in range(ranks)))
        for slot in range(at_once)
    ]


def cpu_count(environment: Mapping[str, str] = os.environ) -> int:
    """Returns the CPUs that this process may use, at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    usable = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    given = environment.get("SLURM_CPUS_PER_TASK", "")
    return max(1, min(usable, int(given))) if given.isdecimal() else usable


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Returns the names of the GPUs that this process may use, without waking any of them."""
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        names = [name.strip() for name in listed.split(",")]
        # CUDA reads the list up to the first name that means none.
        end = next((at for at, name in enumerate(names) if name in ("", "-1", "NoDevFiles")), len(names))
        return names[:end]
    try:
        driven = len(list(_DRIVER.iterdir()))
    except OSError:
        return []
    # A container sees the driver's whole list, and the device files of those that it was given.
    given = sum(path.name.removeprefix("nvidia").isdecimal() for path in _DEVICES.glob("nvidia*"))
    return [str(number) for number in range(min(driven, given) if given else driven)]
