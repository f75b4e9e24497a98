"""Where a run came from: code, packages, machine, job, config, command."""

import hashlib
import json
import os
import platform
import re
import socket
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import gda
from gda.tracking.git_state import git_state

PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "mlflow", "numpy", "gda")
SLURM_VARIABLES = (
    "SLURM_CLUSTER_NAME",
    "SLURM_SUBMIT_HOST",
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_JOB_USER",
    "SLURM_JOB_ACCOUNT",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_QOS",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_NUM_NODES",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_CPUS_PER_TASK",
    "SLURM_JOB_GPUS",
    "SLURM_GPUS_ON_NODE",
    "SLURM_STEP_ID",
    "SLURM_STEP_NUM_NODES",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_GPUS",
)


def collect_provenance(config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Collect what identifies the code, the packages, the machine and the config of this process.

    Cheap by design: it imports none of the packages and does not wake a GPU. What torch knows is
    there where torch has been loaded.

    Args:
        config: The resolved config of the run, as plain data.

    Returns:
        A JSON-ready dict with the keys ``git`` (``None`` outside a checkout or without git),
        ``config_sha256``, ``versions``, ``python``, ``platform``, ``host``, ``cpu``, ``gpus``,
        ``cuda``, ``cuda_visible_devices``, ``ranks``, ``slurm`` and ``command``.
    """
    return {
        "git": git_state(),
        "config_sha256": None if config is None else config_sha256(config),
        "versions": _versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu": {"model": _cpu_model(), "count": os.cpu_count(), "usable": _usable_cpus()},
        "gpus": _gpu_names(),
        "cuda": _cuda_versions(),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "ranks": _ranks(),
        "slurm": {name: os.environ[name] for name in SLURM_VARIABLES if name in os.environ},
        "command": list(sys.argv),
    }


def config_sha256(config: Mapping[str, Any]) -> str:
    """Hash a whole resolved config, whatever the order of its keys.

    The hash of what stands in a run's ``config.yaml`` is the same, so that anyone can check it.

    Args:
        config: The config as plain data.

    Returns:
        SHA-256 of its JSON with sorted keys, in hexadecimal digits.
    """
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = gda.__version__ if name == "gda" else None
    return versions


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _usable_cpus() -> int | None:
    """Count the CPUs that the process may use: on a cluster fewer than the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count()


def _gpu_names() -> list[str]:
    """Name the GPUs, without loading torch and without creating a CUDA context.

    A context made here would cost memory and time, and break workers that are forked later. So
    torch is asked only if it has one already; otherwise the driver's own listing is read, which
    shows all GPUs of the machine.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    names = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        try:
            text = file.read_text()
        except OSError:
            continue
        names += [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("Model:")]
    return names


def _cuda_versions() -> dict[str, str | None]:
    """Name the GPU driver's version, and those of CUDA and cuDNN that torch runs with.

    None of these questions creates a CUDA context. Without a GPU cuDNN is not asked: it would be
    loaded for nothing.
    """
    torch, driver = sys.modules.get("torch"), _driver_version()
    has_gpu = torch is not None and (driver is not None or torch.cuda.is_initialized())
    cudnn = torch.backends.cudnn.version() if torch is not None and has_gpu else None
    return {
        "runtime": None if torch is None else torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
        "driver": driver,
    }


def _driver_version() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    found = re.search(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", text, re.MULTILINE)
    return found[1] if found else None


def _ranks() -> int:
    """Count the processes that train this run together."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return int(distributed.get_world_size())
