"""The check of a grid that goes to a SLURM cluster: its cells, and what they ask of the cluster."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gda.cluster.cells import Cell, check_cells, fetch_for
from gda.cluster.plan import Plan, plan_of
from gda.cluster.slurm.fit import Asked, check_site
from gda.cluster.slurm.sbatch_check import check_flags, check_programs, check_submission
from gda.cluster.slurm.site import Site, look_at_site
from gda.cluster.slurm.submit import Executors, chosen_flags, job_parameters, script_of
from gda.config.faults import ConfigFaults, Fault
from gda.config.schema import ClusterSettings
from gda.config.signature import check_call
from gda.errors import UserError

logger = logging.getLogger("gda")

_KEYS = {"tasks_per_node": "ranks_per_node"}  # of the launcher, where the node ``cluster`` has another word


def checked_for_slurm(
    cells: Sequence[Cell], launcher: Mapping[str, Any], executors: Executors
) -> tuple[Plan, Site] | None:
    """Checks a grid whole, and that the cluster takes its jobs; nothing is submitted or written.

    Args:
        cells: The cells; all of one sweep.
        launcher: The node ``hydra.launcher``.
        executors: Makes submitit's executor.

    Returns:
        The plan, and what the cluster offers; nothing where only the check was asked for (``check=true``).

    Raises:
        ConfigFaults: The grid can't be run, or the cluster refuses its jobs.
    """
    faults, site = _check_cluster(cells, launcher, executors)
    try:
        configs = check_cells(cells)
    except ConfigFaults as error:
        faults = [*error.faults, *faults]
    if faults:
        raise ConfigFaults(faults)
    if configs[0]["check"]:
        which = f"{len(cells)} cells" if len(cells) > 1 else "one cell"
        logger.info("Nothing is wrong with the %s of this sweep, and SLURM takes its jobs.", which)
        return None
    fetch_for(cells, configs)
    return plan_of(cells, configs), site


def _check_cluster(
    cells: Sequence[Cell], launcher: Mapping[str, Any], executors: Executors
) -> tuple[list[Fault], Site]:
    """Checks what the jobs ask of the cluster; the types of the keys are the cells' own check."""
    try:
        clusters: list[Any] = [OmegaConf.to_container(cell.config.cluster, resolve=True) for cell in cells]
    except OmegaConfBaseException:
        return [], Site()  # the cells' check says where
    first = clusters[0]
    if not isinstance(first, dict):
        return [], Site()
    broken = {fault.where.removeprefix("cluster.") for fault in check_call("cluster", first, ClusterSettings)}
    differing = [_differing(key, clusters) for key in first if any(each != first for each in clusters)]
    faults = [fault for fault in differing if fault is not None]
    faults += [] if broken else check_together(first)
    missing = check_programs()
    if missing:
        return [*faults, *missing], Site()
    site = look_at_site()
    if broken:  # what can be told without those keys is told nevertheless
        known = {key: value for key, value in launcher.items() if _KEYS.get(key, key) not in broken}
        return [*faults, *check_site(Asked.by(known), site)], site
    faults += check_flags(first["sbatch"])
    try:
        parameters = job_parameters(launcher, first)
        script = script_of(executors, parameters)
        asked = Asked.by(parameters)
    except UserError as error:
        return [*faults, Fault("hydra.launcher", str(error))], site
    faults += check_site(asked, site)
    # Last, because it names one thing at a time, in words of its own.
    return faults or check_submission(script, chosen_flags(parameters)), site


def check_together(cluster: Mapping[str, Any]) -> list[Fault]:
    """Refuses values that are fine alone."""
    faults = []
    if cluster["side_by_side"] > 1 and cluster["nodes"] * cluster["ranks_per_node"] > 1:
        what = "runs that share a job have one process each"
        faults.append(Fault("cluster.side_by_side", what, "cluster.side_by_side=1"))
    if cluster["signal_delay_s"] >= 60 * cluster["timeout_min"]:
        what = f"{cluster['timeout_min']} minutes end before the time to save that is set aside, "
        what += f"{cluster['signal_delay_s']} s"
        faults.append(
            Fault("cluster.timeout_min", what, f"cluster.signal_delay_s={15 * cluster['timeout_min']}")
        )
    return faults


def _differing(key: Any, clusters: Sequence[Any]) -> Fault | None:
    values = list(dict.fromkeys(str(cluster.get(key)) for cluster in clusters))
    if len(values) == 1:
        return None
    what = f"it can't differ between the cells of a sweep, and is {' and '.join(values[:3])}"
    return Fault(f"cluster.{key}", f"{what}: give each a command of its own")
