"""A child that runs `launch.py` where the programs on PATH are a test's own."""

import os

from launching import run_child


def run_with_path(path: str, arguments: list[str], folder: str, log: str) -> None:
    """As if `PATH=path python launch.py ARGUMENTS` had been typed in `folder`."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "SBATCH_")):
            del os.environ[name]
    os.environ["PATH"] = path
    run_child(arguments, folder, log, None, [])
