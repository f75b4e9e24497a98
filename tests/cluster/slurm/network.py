"""A network, a host name and a hosts file for each node, made of Linux namespaces; the files are shared."""

import subprocess
from pathlib import Path

from slurm.layout import NETWORK, NODES, Layout

PREFIX = "gdatest"
# Runs a program as a host of its own. Not `ip netns exec`, which mounts another /sys.
AS_HOST = """
mount --bind "$1/hosts" /etc/hosts && mount --bind "$1/resolv.conf" /etc/resolv.conf &&
hostname "$2" && shift 2 && exec "$@"
"""


def possible() -> bool:
    """Says whether namespaces may be made here: a container often may not."""
    name = f"{PREFIX}-probe"
    try:
        made = _ip("netns", "add", name)
    except OSError:
        return False
    if not made:
        return False
    shown = Path("/etc/resolv.conf").exists() and _quiet("unshare", "--uts", "--mount", "true")
    bridge = _ip("link", "add", f"{PREFIX}p", "type", "bridge") and _ip("link", "del", f"{PREFIX}p")
    _ip("netns", "del", name)
    return shown and bridge


def build() -> None:
    """Connects a namespace for each node to a bridge, on which this machine is the last address."""
    down()
    _ip("link", "add", PREFIX, "type", "bridge")
    _ip("addr", "add", f"{NETWORK}.254/24", "dev", PREFIX)
    _ip("link", "set", PREFIX, "up")
    for number, node in enumerate(NODES, start=1):
        space, wire = f"{PREFIX}-{node}", f"{PREFIX}{number}"
        _ip("netns", "add", space)
        _ip("link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", wire, "master", PREFIX, "up")
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "route", "add", "default", "via", f"{NETWORK}.254")


def down() -> None:
    """Removes what :func:`build` made."""
    for node in NODES:
        _ip("netns", "del", f"{PREFIX}-{node}")
    _ip("link", "del", PREFIX)


def on_host(layout: Layout, node: str, *command: str) -> list[str]:
    """Returns the command that runs `command` on a node, without a process between."""
    if not layout.networked:
        return list(command)
    enter = [
        "nsenter",
        f"--net=/run/netns/{PREFIX}-{node}",
        "unshare",
        "--uts",
        "--mount",
        "--propagation",
        "slave",
    ]
    return [*enter, "sh", "-c", AS_HOST, "sh", str(layout.base), node, *command]


def _ip(*arguments: str) -> bool:
    return _quiet("ip", *arguments)


def _quiet(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0
