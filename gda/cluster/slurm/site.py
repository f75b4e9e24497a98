"""What a SLURM cluster offers, as its own programs tell it."""

import getpass
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

from gda.cluster.slurm.command import Answer, ask

_UNLIMITED = {"", "UNLIMITED", "INFINITE", "NONE", "N/A", "(null)"}


@dataclass(frozen=True)
class Partition:
    """A partition and its limits.

    Attributes:
        name: Its name.
        default: Whether jobs go there that name none.
        state: ``UP``; ``DOWN`` lets jobs wait; ``DRAIN`` and ``INACTIVE`` take none.
        minutes: Longest time limit of a job; None for no limit.
        nodes: Most nodes of a job; None for no limit.
    """

    name: str
    default: bool = False
    state: str = "UP"
    minutes: int | None = None
    nodes: int | None = None


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of a partition that are alike.

    Attributes:
        partition: Name of the partition.
        count: How many they are.
        cpus: CPUs of each.
        memory_mb: Memory of each.
        gpus: GPUs of each.
    """

    partition: str
    count: int
    cpus: int
    memory_mb: int
    gpus: int


@dataclass(frozen=True)
class Site:
    """A cluster. What its programs do not tell is empty.

    Attributes:
        partitions: By name.
        node_groups: The nodes of all partitions.
        accounts: Accounts of this user.
        qualities: Names of all qualities of service.
        largest_array: Most jobs of one job array.
    """

    partitions: tuple[Partition, ...] = ()
    node_groups: tuple[NodeGroup, ...] = ()
    accounts: tuple[str, ...] = ()
    qualities: tuple[str, ...] = ()
    largest_array: int = 1000

    @cached_property
    def by_name(self) -> dict[str, Partition]:
        """The partitions, by their names."""
        return {partition.name: partition for partition in self.partitions}

    @property
    def default(self) -> Partition | None:
        """The partition of jobs that name none."""
        return next((each for each in self.partitions if each.default), None)

    def nodes_of(self, partition: str) -> list[NodeGroup]:
        """Returns the nodes of one partition."""
        return [group for group in self.node_groups if group.partition == partition]


def look_at_site() -> Site:
    """Asks SLURM's programs what there is; what one of them does not tell stays empty."""
    user = getpass.getuser()
    questions = (
        ("scontrol", "show", "partition", "-o"),
        ("sinfo", "-h", "-e", "-o", "%R|%D|%c|%m|%G"),
        ("sacctmgr", "-n", "-P", "show", "assoc", f"user={user}", "format=account"),
        ("sacctmgr", "-n", "-P", "show", "qos", "format=name"),
        ("scontrol", "show", "config"),
    )
    with ThreadPoolExecutor(len(questions)) as pool:
        partitions, nodes, accounts, qualities, config = pool.map(lambda each: ask(*each), questions)
    return Site(
        partitions=tuple(filter(None, map(_partition, _said(partitions)))),
        node_groups=tuple(filter(None, map(_node_group, _said(nodes)))),
        accounts=_names(accounts),
        qualities=_names(qualities),
        largest_array=_largest_array(_said(config)),
    )


def minutes_of(text: str) -> int | None:
    """Reads one of SLURM's time limits, ``[days-]hours:minutes:seconds`` or plain minutes.

    Returns:
        Whole minutes; None where there is no limit.
    """
    if text.upper() in _UNLIMITED:
        return None
    days, dash, clock = text.rpartition("-")
    parts = [int(part) if part.isdecimal() else 0 for part in clock.split(":")]
    if dash:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, minutes, seconds = 0, *[*parts, 0][:2]
    return (int(days) if days.isdecimal() else 0) * 1440 + hours * 60 + minutes + (seconds >= 30)


def gpus_of(resources: str) -> int:
    """Counts the GPUs among a node's generic resources, such as ``gpu:a100:4(S:0-1),shard:8``."""
    total = 0
    for resource in re.sub(r"\([^)]*\)", "", resources).split(","):
        name, *rest = resource.split(":")
        if name == "gpu":
            total += int(rest[-1]) if rest and rest[-1].isdecimal() else 1
    return total


def _partition(line: str) -> Partition | None:
    fields = dict(part.partition("=")[::2] for part in line.split())
    if not fields.get("PartitionName"):
        return None
    most_nodes = fields.get("MaxNodes", "")
    return Partition(
        name=fields["PartitionName"],
        default=fields.get("Default") == "YES",
        state=fields.get("State", "UP"),
        minutes=minutes_of(fields.get("MaxTime", "")),
        nodes=int(most_nodes) if most_nodes.isdecimal() else None,
    )


def _node_group(line: str) -> NodeGroup | None:
    fields = line.split("|")
    if len(fields) != 5:
        return None
    partition, count, cpus, memory, resources = fields
    return NodeGroup(partition, _whole(count), _whole(cpus), _whole(memory), gpus_of(resources))


def _whole(text: str) -> int:
    """Reads a number that may end in a plus: ``64+``."""
    digits = text.strip().rstrip("+")
    return int(digits) if digits.isdecimal() else 0


def _names(answer: Answer) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, map(str.strip, _said(answer)))))


def _largest_array(config: Sequence[str]) -> int:
    for line in config:
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize" and value.strip().isdecimal():
            return max(
                1, int(value) - 1
            )  # SLURM's number is one above the last index, and indices begin at 0
    return 1000


def _said(answer: Answer) -> Sequence[str]:
    return answer.lines if answer.ok else ()
