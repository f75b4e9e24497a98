"""Checks that a run can be shared by its processes, and its batches be taken in parts."""

from collections.abc import Mapping
from typing import Any

import torch

from gda.config.faults import Fault
from gda.config.loss_nodes import active_terms, optimizer_node
from gda.config.ranks import SCOPED, ranks_of, runs_here
from gda.config.signature import locate
from gda.config.stages import needs_of
from gda.data.few_shot.listing import FewShotFacts
from gda.data.source import DatasetFacts

LEAST = 2
"""Images without which batch norm has no statistics, and alignment nothing to align."""


def check_ranks(config: Mapping[str, Any], facts: DatasetFacts | FewShotFacts | None) -> list[Fault]:
    """Holds batches and options against the number of processes, and of parts that each batch is taken in.

    Args:
        config: The resolved config of a run that trains.
        facts: What is known of its data set.
    """
    ranks, parts = ranks_of(config), config["trainer"].get("accumulation", 1)
    faults = []
    if ranks * parts > 1:
        if needs_of(config).head:
            faults += _check_batches(config["recipe"], facts, ranks, parts)
        else:
            faults += _check_episodes(config["task"], ranks, parts)
    if ranks > 1:
        faults += _check_batch_norm(config) + _check_scope(config)
    if parts > 1 and hasattr(locate(optimizer_node(config)["_target_"]), "hold"):
        what = "this optimiser keeps the gradients of two losses apart, and takes them from whole batches"
        faults.append(Fault("trainer.accumulation", what, "trainer.accumulation=1"))
    return faults


def _check_batches(
    recipe: Mapping[str, Any], facts: DatasetFacts | FewShotFacts | None, ranks: int, parts: int
) -> list[Fault]:
    """Checks that every part of every share has its images, also of an incomplete last batch."""
    batch, shares, where = recipe["batch_size"], ranks * parts, "recipe.batch_size"
    if batch < LEAST:
        return []  # said of any number of processes
    if batch < LEAST * shares:
        what = (
            f"a batch of {batch} images is too small for {_sharers(ranks, parts)}: batch norm and alignment "
            f"need {LEAST} images in each"
        )
        return [Fault(where, what, f"{where}={LEAST * shares}")]
    if batch % shares:
        what = f"a batch of {batch} images can't be shared evenly by {_sharers(ranks, parts)}"
        return [Fault(where, what, f"{where}={_nearest(batch, shares)}")]
    if facts is None or recipe["drop_last"]:
        return []
    size = facts.train_size
    rest = size % batch
    if rest < LEAST or rest // ranks // parts >= LEAST:  # a rest of one image is said elsewhere
        return []
    what = (
        f"the last batch of an epoch would hold {rest} images, too few for {_sharers(ranks, parts)} "
        f"({size} images in batches of {batch})"
    )
    fix = "recipe.drop_last=true" if size > batch else "fewer processes, or trainer.accumulation=1"
    return [Fault("recipe.drop_last", what, fix)]


def _check_episodes(task: Mapping[str, Any], ranks: int, parts: int) -> list[Fault]:
    """Checks that the episodes of a step can be shared: an episode stays whole."""
    where, episodes = "task.train_episodes_per_batch", task.get("train_episodes_per_batch")
    if episodes is None or episodes % (ranks * parts) == 0:
        return []
    what = f"{episodes} episodes can't be shared evenly by {_sharers(ranks, parts)}"
    return [Fault(where, what, f"{where}={_nearest(episodes, ranks * parts)}")]


def _check_batch_norm(config: Mapping[str, Any]) -> list[Fault]:
    """Checks that the device can normalise with the statistics of all processes."""
    if not config["trainer"].get("sync_batch_norm", False) or not _is_on_cpu(config):
        return []
    what = "torch has synchronised batch norm for GPUs only, and this run is one of CPUs"
    return [Fault("trainer.sync_batch_norm", what, "trainer.sync_batch_norm=false")]


def _is_on_cpu(config: Mapping[str, Any]) -> bool:
    device, cluster = str(config["trainer"]["device"]), config["cluster"]
    if device != "auto":
        return device.partition(":")[0] == "cpu"
    if runs_here(config):
        return not torch.cuda.is_available()
    return bool(cluster.get("gpus_per_node") == 0)


def _check_scope(config: Mapping[str, Any]) -> list[Fault]:
    """Checks that no term gathers over processes what must not be compared."""
    if config["task"].get("pool_episodes", True):
        return []
    what = "samples are compared within an episode, and every episode is on one process"
    return [
        Fault(f"{path}.scope", what, f"{path}.scope=local, or task.pool_episodes=true")
        for path, node in active_terms(config).items()
        if node["_target_"] == SCOPED and node.get("scope") == "global"
    ]


def _sharers(ranks: int, parts: int) -> str:
    """Names those that a batch is shared by."""
    processes = f"{ranks} processes" if ranks > 1 else ""
    return (
        f"{processes} with {parts} parts each" if ranks > 1 and parts > 1 else processes or f"{parts} parts"
    )


def _nearest(size: int, shares: int) -> str:
    """Returns the nearest sizes that so many can share evenly."""
    below = size // shares * shares
    return f"{below}, or {below + shares}" if below else f"{shares}"
