"""Whether the jobs of a sweep fit into a cluster, as far as it tells what it offers."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gda.cluster.slurm.site import NodeGroup, Partition, Site
from gda.config.faults import Fault
from gda.suggestions import did_you_mean, near

NODE_LOCAL = ("/tmp", "/var/tmp", "/dev/shm")
"""Folders that every node has for itself."""


@dataclass(frozen=True)
class Asked:
    """What a job asks for.

    Attributes:
        partitions: Names of partitions, any of which will do; empty leaves the choice to SLURM.
        account: The account, or None.
        qos: The quality of service, or None.
        minutes: Time limit.
        nodes: Nodes.
        tasks: Processes on each node.
        cpus: CPUs of each process.
        gpus: GPUs on each node.
        memory_mb: Memory on each node, or None.
    """

    partitions: tuple[str, ...]
    account: str | None
    qos: str | None
    minutes: int
    nodes: int
    tasks: int
    cpus: int
    gpus: int
    memory_mb: float | None

    @classmethod
    def by(cls, parameters: Mapping[str, Any]) -> "Asked":
        """Reads parameters of the launcher; what they leave open, the user's environment may say."""

        def named(key: str) -> str | None:
            value = parameters.get(key)
            return os.environ.get(f"SBATCH_{key.upper()}") or None if value is None else str(value)

        memory = parameters.get("mem_gb")
        return cls(
            partitions=tuple(filter(None, (named("partition") or "").split(","))),
            account=named("account"),
            qos=named("qos"),
            minutes=parameters.get("timeout_min") or 1,
            nodes=parameters.get("nodes") or 1,
            tasks=parameters.get("tasks_per_node") or 1,
            cpus=parameters.get("cpus_per_task") or 1,
            gpus=parameters.get("gpus_per_node") or 0,
            memory_mb=None if memory is None else 1024 * memory,
        )


def check_site(asked: Asked, site: Site) -> list[Fault]:
    """Holds what a job asks for against what the cluster offers, as far as that is known."""
    faults = []
    if site.partitions:
        faults += _check_partitions(asked, site)
    if asked.account is not None and site.accounts and asked.account not in site.accounts:
        faults.append(_unknown("cluster.account", asked.account, site.accounts, "you have no account"))
    if asked.qos is not None and site.qualities and asked.qos not in site.qualities:
        faults.append(_unknown("cluster.qos", asked.qos, site.qualities, "there is no quality of service"))
    return faults


def warnings_of(runs: Path) -> list[str]:
    """Names what is probably wrong without being surely so."""
    folder = runs.absolute().resolve()
    if any(folder.is_relative_to(local) for local in NODE_LOCAL):
        return [
            f"Warning: {folder} is a folder that every node has for itself. If the jobs run on other "
            "machines than this one, they will not find it: set runs=FOLDER to one that the nodes share."
        ]
    return []


def _check_partitions(asked: Asked, site: Site) -> list[Fault]:
    names = sorted(site.by_name)
    if not asked.partitions and site.default is None:
        what = f"this cluster has no default partition; there are: {', '.join(names)}"
        return [Fault("cluster.partition", what, f"cluster.partition={names[0]}")]
    unknown = [name for name in asked.partitions if name not in site.by_name]
    if unknown:
        return [_unknown("cluster.partition", name, names, "there is no partition") for name in unknown]
    partitions = [site.by_name[name] for name in asked.partitions]
    if not partitions and site.default is not None:
        partitions = [site.default]
    found = [_check_partition(asked, partition, site) for partition in partitions]
    return [] if [] in found else found[0]  # any of them will do


def _check_partition(asked: Asked, partition: Partition, site: Site) -> list[Fault]:
    name = partition.name
    if partition.state in ("DRAIN", "INACTIVE"):
        others = sorted(each.name for each in site.partitions if each.state == "UP")
        fix = f"cluster.partition={others[0]}" if others else ""
        return [Fault("cluster.partition", f"{name} takes no jobs now (SLURM: {partition.state})", fix)]
    faults = []
    if asked.qos is None:  # a quality of service may lift the partition's limits
        if partition.minutes is not None and asked.minutes > partition.minutes:
            what = f"{asked.minutes} minutes are more than partition {name} allows, {partition.minutes}"
            faults.append(Fault("cluster.timeout_min", what, f"cluster.timeout_min={partition.minutes}"))
        if partition.nodes is not None and asked.nodes > partition.nodes:
            what = f"{asked.nodes} are more than partition {name} allows for a job, {partition.nodes}"
            faults.append(Fault("cluster.nodes", what, f"cluster.nodes={partition.nodes}"))
    return faults + _check_nodes(asked, name, site)


def _check_nodes(asked: Asked, partition: str, site: Site) -> list[Fault]:
    groups = site.nodes_of(partition)
    if not groups:
        return []
    faults = []
    most_gpus = max(group.gpus for group in groups)
    if asked.gpus > most_gpus:
        others = sorted({each.partition for each in site.node_groups if each.gpus >= asked.gpus})
        what = f"a node of partition {partition} has {most_gpus or 'no'} GPUs{' at most' * (most_gpus > 0)}"
        what += f", and the job asks for {asked.gpus}"
        what += f"; {', '.join(others)} would do" if others else ""
        fix = f"cluster.partition={others[0]}" if others else f"cluster.gpus_per_node={most_gpus}"
        faults.append(Fault("cluster.gpus_per_node", what, fix))
    most_cpus = max(group.cpus for group in groups)
    if asked.tasks * asked.cpus > most_cpus:
        each = most_cpus // asked.tasks
        what = f"a node of partition {partition} has {most_cpus} CPUs at most, and the job asks for "
        what += (
            f"{asked.tasks * asked.cpus} ({asked.tasks} processes)" if asked.tasks > 1 else f"{asked.cpus}"
        )
        faults.append(Fault("cluster.cpus_per_task", what, f"cluster.cpus_per_task={each}" if each else ""))
    most_memory = max(group.memory_mb for group in groups)
    if asked.memory_mb is not None and asked.memory_mb > most_memory > 0:
        most = most_memory // 1024
        what = f"a node of partition {partition} has {most_memory / 1024:.1f} GB at most"
        faults.append(Fault("cluster.mem_gb", what, f"cluster.mem_gb={most}" if most else ""))
    if faults:
        return faults
    fitting = sum(group.count for group in groups if _fits(asked, group))
    if asked.nodes > fitting:
        what = f"partition {partition} has {_nodes(fitting)} as large as the job asks for, not {asked.nodes}"
        faults.append(Fault("cluster.nodes", what, f"cluster.nodes={fitting}" if fitting else ""))
    return faults


def _fits(asked: Asked, group: NodeGroup) -> bool:
    enough = group.cpus >= asked.tasks * asked.cpus and group.gpus >= asked.gpus
    return enough and (asked.memory_mb is None or not group.memory_mb or group.memory_mb >= asked.memory_mb)


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _unknown(where: str, name: str, choices: Sequence[str], what: str) -> Fault:
    matches = near(name, choices, 1)
    fix = f"{where}={matches[0]}" if matches else ""
    return Fault(where, f"{what} {name!r}; {did_you_mean(name, choices)}", fix)
