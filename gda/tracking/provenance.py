"""Where a run came from: code, packages, machine, command."""

import hashlib
import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import gda

PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "mlflow", "numpy", "gda")
SLURM_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_PARTITION",
    "SLURM_NTASKS",
    "SLURM_PROCID",
)
_MAX_UNTRACKED = 50
# What a person's git configuration could change in the texts that are parsed or hashed here.
_GIT_OPTIONS = (
    "status.showUntrackedFiles=normal",
    "diff.relative=false",
    "diff.noprefix=false",
    "diff.mnemonicPrefix=false",
)


def collect_provenance() -> dict[str, Any]:
    """Collect what identifies the code, the packages and the machine of this process.

    Cheap by design: it imports none of the packages and does not wake a GPU.

    Returns:
        A JSON-ready dict with the keys ``git`` (``None`` outside a checkout or without git),
        ``versions``, ``python``, ``platform``, ``host``, ``cpu``, ``gpus``,
        ``cuda_visible_devices``, ``slurm`` and ``command``.
    """
    return {
        "git": _git_state(),
        "versions": _versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu": {"model": _cpu_model(), "count": os.cpu_count(), "usable": _usable_cpus()},
        "gpus": _gpu_names(),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "slurm": {name: os.environ[name] for name in SLURM_VARIABLES if name in os.environ},
        "command": list(sys.argv),
    }


def working_diff() -> str:
    """Return the difference between the checkout and its last commit.

    Returns:
        The patch of the tracked files, binary ones included, as ``git apply`` takes it; empty if
        there is no difference, no commit, no checkout or no git.
    """
    if not _in_checkout():
        return ""
    return _git("diff", "--binary", "--no-color", "--no-ext-diff", "HEAD") or ""


def _git_state() -> dict[str, Any] | None:
    if not _in_checkout():
        return None
    status = _git("status", "--porcelain=v2", "--branch", "-z")  # -z: paths from the root
    if status is None:
        return None
    headers: dict[str, str] = {}
    changed = False
    untracked: list[str] = []
    for line in status.split("\0"):
        if line.startswith("# "):
            key, _, value = line[2:].partition(" ")
            headers[key] = value
        elif line.startswith("? "):
            untracked.append(line[2:].encode("utf-8", "backslashreplace").decode("utf-8"))
        elif line:
            changed = True
    commit = headers.get("branch.oid")
    branch = headers.get("branch.head")
    diff = working_diff() if changed else ""
    return {
        "commit": None if commit in (None, "(initial)") else commit,
        "branch": None if branch in (None, "(detached)") else branch,
        "dirty": changed or bool(untracked),
        "diff_sha256": hashlib.sha256(diff.encode("utf-8", "surrogateescape")).hexdigest() if diff else None,
        "untracked": untracked[:_MAX_UNTRACKED],
    }


def _in_checkout() -> bool:
    """Whether the package's source is part of a git checkout.

    A package installed into a virtual environment may lie inside somebody's checkout, but is
    ignored by it; that commit would say nothing about this code.
    """
    # check-ignore: 0 ignored, 1 not ignored, 128 no checkout
    return _run_git("check-ignore", "--quiet", "__init__.py")[0] == 1


def _git(*arguments: str) -> str | None:
    code, output = _run_git(*arguments)
    return output if code == 0 else None


def _run_git(*arguments: str) -> tuple[int | None, str]:
    # A hook's variables would point at another repository; optional locks would disturb a person
    # who works in the same checkout.
    hook = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY"}
    environment = {key: value for key, value in os.environ.items() if key not in hook}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    environment["LC_ALL"] = "C"
    try:
        done = subprocess.run(
            ["git", *(word for option in _GIT_OPTIONS for word in ("-c", option)), *arguments],
            cwd=Path(gda.__file__).resolve().parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None, ""
    return done.returncode, done.stdout.decode("utf-8", "surrogateescape")


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
