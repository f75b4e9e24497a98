"""Processes and what they have started, as the kernel knows them."""

import ctypes
import os
import signal
from pathlib import Path

PARENT_VARIABLE = "GDA_PARENT"
"""Names the process that a run side by side with others belongs to."""

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def end_with_parent() -> None:
    """Lets this process get SIGTERM when the one that started it dies without a word, as by kill -9.

    Only where :data:`PARENT_VARIABLE` names its parent, and only on Linux.

    Raises:
        KeyboardInterrupt: The parent is dead already.
    """
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is None:
        return
    try:
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGTERM), 0, 0, 0)
    except (OSError, AttributeError):  # not Linux
        return
    if os.getppid() != int(parent):
        raise KeyboardInterrupt


def children_of(pid: int) -> list[int]:
    """Returns the processes that a process has started; empty where the system does not tell."""
    children = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()  # the name may hold spaces itself
        except OSError:  # it has ended since
            continue
        if len(fields) > 1 and int(fields[1]) == pid:
            children.append(int(entry.parent.name))
    return children


def descendants_of(pid: int) -> list[int]:
    """Returns the processes below a process, however deep."""
    below = children_of(pid)
    return below + [each for child in below for each in descendants_of(child)]
