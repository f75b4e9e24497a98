"""Starts and stops the tests' SLURM: munge, MariaDB, slurmdbd, slurmctld and a slurmd for each node."""

import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path

from slurm import network, packages
from slurm.daemons import environment, pid_of, start, stop, wait_until
from slurm.layout import NODES, Layout

BASE = Path("/var/tmp/gda-test-slurm")
SERVICES = ("slurmctld", "slurmdbd", "mariadb", "munge")  # in the order in which they are stopped


def up(base: Path = BASE) -> Layout:
    """Installs, configures and starts everything; does nothing where it is up already.

    Raises:
        Unavailable: It can't be had here, or did not come up. The logs are left below `base`.
    """
    packages.require()
    layout = layout_here(base)
    if is_up(layout):
        return layout
    down(base)
    base.mkdir(mode=0o755)
    for name, text in layout.files().items():
        (base / name).write_text(text)
    (base / "slurmdbd.conf").chmod(0o600)  # slurmdbd insists
    (base / "controller").mkdir()
    if layout.networked:
        network.build()
    _start_munge(base)
    _start_accounting(base)
    start(base, "slurmctld", ["slurmctld", "-D", "-i"])
    wait_until(lambda: "is UP" in _says(base, "scontrol", "ping"), 30, "slurmctld")
    for node in NODES:
        start_node(layout, node)
    wait_until(lambda: _idle(base), 60, f"all nodes (logs: {base}/*.log)")
    # slurmctld tells slurmdbd of jobs with some delay at first
    job = _says(base, "sbatch", "--parsable", "--output=/dev/null", "--wrap=true").strip()
    wait_until(lambda: "COMPLETED" in _says(base, "sacct", "-nX", "-j", job, "-o", "State"), 60, "sacct")
    return layout


def layout_here(base: Path = BASE) -> Layout:
    """What the cluster looks like on this machine."""
    return Layout(base, networked=network.possible())


def is_up(layout: Layout) -> bool:
    """Says whether the cluster runs, whole."""
    names = (*SERVICES, *NODES)
    return (
        layout.configuration.exists()
        and layout.configuration.read_text() == layout.files()["slurm.conf"]
        and all(pid_of(layout.base, name) for name in names)
        and _idle(layout.base)
    )


def down(base: Path = BASE) -> None:
    """Cancels the jobs, stops what :func:`up` started, and removes its folder."""
    if not base.exists():
        return
    if pid_of(base, "slurmctld"):
        _says(base, "scancel", "--user=root")
        deadline = time.monotonic() + 15
        while _says(base, "squeue", "-h").strip() and time.monotonic() < deadline:
            time.sleep(0.2)
    for node in NODES:
        stop(base, node)
        _kill_processes_of(base, node)
    for service in SERVICES:
        stop(base, service, seconds=30)
    if shutil.which("ip", path=packages.SEARCHED):
        network.down()
    shutil.rmtree(base)


def start_node(layout: Layout, node: str) -> None:
    """Starts a node's slurmd. Its children inherit the name, by which :func:`kill_node` finds them."""
    (layout.base / node).mkdir(exist_ok=True)
    command = network.on_host(layout, node, "slurmd", "-D", "-N", node)
    start(layout.base, node, command, {"SLURMD_NODENAME": node})
    wait_until(lambda: pid_of(layout.base, node) is not None, 20, f"slurmd of {node}")


def kill_node(layout: Layout, node: str) -> None:
    """Ends a node as a power cut does: slurmd and all that ran under it get SIGKILL at once."""
    _kill_processes_of(layout.base, node)
    wait_until(lambda: pid_of(layout.base, node) is None, 10, f"the death of {node}")


def _start_munge(base: Path) -> None:
    """Starts a munge of our own: SLURM finds it by the socket's path."""
    key = base / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    files = {"socket": "socket", "key-file": "key", "pid-file": "daemon", "seed-file": "seed"}
    options = [f"--{option}={base}/munge.{suffix}" for option, suffix in files.items()]
    start(base, "munge", ["munged", "--foreground", *options])
    check = f"munge -n -S {base}/munge.socket | unmunge -S {base}/munge.socket"
    wait_until(lambda: "Success" in _says(base, "sh", "-c", check), 20, "munged")


def _start_accounting(base: Path) -> None:
    """Starts a database without network, reached by its socket alone, and SLURM's accounting on it."""
    data, socket = base / "database", base / "mariadb.socket"
    install = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db"]
    _says(base, *install, "--auth-root-authentication-method=socket")
    options = [
        "--no-defaults",
        "--user=root",
        f"--datadir={data}",
        f"--socket={socket}",
        "--skip-networking",
        "--innodb-buffer-pool-size=64M",
        "--innodb-log-file-size=16M",
        "--innodb-flush-log-at-trx-commit=0",
        "--performance-schema=off",
    ]
    start(base, "mariadb", ["mariadbd", *options])
    client = ["mariadb", "--no-defaults", f"--socket={socket}", "-e"]
    create = "create database if not exists slurm_acct_db; select 'made'"
    wait_until(lambda: "made" in _says(base, *client, create), 60, "mariadbd")
    start(base, "slurmdbd", ["slurmdbd", "-D"], {"MYSQL_UNIX_PORT": str(socket)})
    wait_until(
        lambda: "gdatest" in _says(base, "sacctmgr", "-i", "add", "cluster", "gdatest"), 60, "slurmdbd"
    )
    _says(base, "sacctmgr", "-i", "add", "account", "default", "cluster=gdatest")
    _says(base, "sacctmgr", "-i", "add", "user", "root", "account=default")


def _idle(base: Path) -> bool:
    states = _says(base, "sinfo", "-h", "-N", "-o", "%N %t").split("\n")
    serving = {line.split()[0] for line in states if line.endswith((" idle", " mix", " alloc"))}
    return serving == set(NODES)


def _kill_processes_of(base: Path, node: str) -> None:
    """Kills slurmd, its job steps and their tasks: the processes that carry this node's name."""
    marks = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={base}/slurm.conf".encode()}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marks <= set((folder / "environ").read_bytes().split(b"\0")):
                os.kill(int(folder.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue  # it ended meanwhile


def _says(base: Path, *command: str) -> str:
    """What a command prints, on both outputs; nothing where it hangs."""
    try:
        done = subprocess.run(
            command,
            env=environment(base),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout
