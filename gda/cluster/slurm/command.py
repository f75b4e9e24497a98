"""Calls of SLURM's own programs: bounded in time, and never raising for what they say."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import dataclass

# What a user has set as the site's choice, where the config makes none.
_USERS_CHOICES = {"partition", "account", "qos", "constraint", "reservation", "clusters"}
_OF_PROCESS_GROUPS = {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}


@dataclass(frozen=True)
class Answer:
    """What a program said.

    Attributes:
        ok: Whether it ended well.
        lines: Its standard output.
        errors: Its standard error, without blank lines.
    """

    ok: bool
    lines: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    def complaint(self) -> str:
        """Why it did not end well, in its own words."""
        return "; ".join(self.errors) or "it gave no reason"


def ask(program: str, *options: str, stdin: str = "", timeout: float = 10) -> Answer:
    """Runs a program of SLURM.

    Args:
        program: Its name.
        options: Its arguments.
        stdin: What it reads.
        timeout: Seconds that it may take.

    Returns:
        What it said; not ok where it is missing, hangs or fails.
    """
    path = shutil.which(program)
    if path is None:
        return Answer(ok=False, errors=(f"there is no {program} on PATH",))
    try:
        done = subprocess.run([path, *options], input=stdin.encode(), capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Answer(ok=False, errors=(f"{program} gave no answer within {timeout:g} s",))
    except OSError as error:
        return Answer(ok=False, errors=(f"{program} can't be run: {error.strerror}",))
    lines = done.stdout.decode(errors="replace").splitlines()
    errors = [line.strip() for line in done.stderr.decode(errors="replace").splitlines()]
    return Answer(done.returncode == 0, tuple(lines), tuple(filter(None, errors)))


@contextlib.contextmanager
def submitting(chosen: Collection[str]) -> Iterator[None]:
    """Takes out of the environment what would change a job behind the config's back.

    Variables ``SBATCH_*`` win over the lines of a script, and a job that was submitted from within a job
    inherits that one's ``SLURM_*``. A user's default account or partition stays where the config has none.

    Args:
        chosen: Flags of sbatch that the config sets.
    """
    kept = {f"SBATCH_{name.upper()}" for name in _USERS_CHOICES - set(chosen)} | {"SLURM_CONF"}
    foreign = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SUBMITIT_", "GDA_SWEEP")
    taken = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if (name.startswith(foreign) and name not in kept) or name in _OF_PROCESS_GROUPS
    }
    try:
        yield
    finally:
        os.environ.update(taken)
