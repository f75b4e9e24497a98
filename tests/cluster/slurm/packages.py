"""The Debian packages of a SLURM with accounting, installed where they are missing."""

import os
import shutil
import subprocess
from pathlib import Path

PACKAGES = (
    "munge",
    "slurmctld",
    "slurmd",
    "slurmdbd",
    "slurm-client",
    "slurm-wlm-basic-plugins",
    "slurm-wlm-mysql-plugin",
    "mariadb-server-core",
    "mariadb-client-core",
    "iproute2",
)
SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FOREIGN = Path("/etc/slurm/slurm.conf")
BESIDE = "GDA_TEST_SLURM_BESIDE"  # set to 1: start the tests' SLURM on a machine that has another


class Unavailable(Exception):
    """No SLURM can be had on this machine, and why."""


def require() -> None:
    """Installs what is missing.

    Raises:
        Unavailable: Not root, no apt-get, no network, or a machine with a SLURM that is not the tests'.
    """
    if os.geteuid() != 0:
        raise Unavailable("starting a SLURM needs root")
    if FOREIGN.exists() and os.environ.get(BESIDE) != "1":
        raise Unavailable(
            f"this machine has a SLURM already ({FOREIGN}), which is left alone; "
            f"{BESIDE}=1 starts the tests' own beside it"
        )
    if shutil.which("apt-get") is None:
        raise Unavailable("apt-get is not here to install it")
    missing = _missing()
    if missing:
        _install(missing)


def _missing() -> list[str]:
    query = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *PACKAGES]
    shown = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
    return [package for package in PACKAGES if f"{package} installed" not in shown]


def _install(packages: list[str]) -> None:
    """Installs packages without starting their daemons: the tests start their own."""
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
    try:
        if _apt(install).returncode != 0:  # the package lists may be old or empty
            _apt(["apt-get", "update", "-q"])
            done = _apt(install)
            if done.returncode != 0:
                raise Unavailable(
                    f"apt-get can't install {' '.join(packages)}: {' '.join(done.stdout.split())[-500:]}"
                )
    finally:
        if ours:
            policy.unlink()


def _apt(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
