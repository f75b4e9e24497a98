"""How many processes train one run, as its config says."""

import os
from collections.abc import Mapping
from typing import Any

SCOPED = "gda.distillers.sinkhorn.Sinkhorn"
"""The term whose ``scope`` says whether it compares the samples of one process or of all."""


def runs_here(config: Mapping[str, Any]) -> bool:
    """Says whether a run is made on this machine: on a login node, a cluster's runs are not."""
    name = str((config.get("cluster") or {}).get("name", "local"))
    return name.startswith("local") or "SLURM_JOB_ID" in os.environ


def ranks_of(config: Mapping[str, Any]) -> int:
    """Returns the number of processes of a run: its nodes times the processes on each; by default 1."""
    cluster = config.get("cluster") or {}
    return int(cluster.get("nodes", 1)) * int(cluster.get("ranks_per_node", 1))
