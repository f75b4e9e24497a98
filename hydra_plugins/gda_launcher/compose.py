"""The cells of a sweep, composed: what every launcher does first."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

if TYPE_CHECKING:  # Hydra imports every plug-in, whatever is asked for; the code behind it has torch in it
    from gda.cluster.cells import Cell


def composed_cells(
    hydra_context: HydraContext, config: DictConfig, job_overrides: Sequence[Sequence[str]], first: int
) -> "list[Cell]":
    """Composes every cell of a sweep, without Hydra's own node.

    Args:
        hydra_context: What Hydra hands to a launcher.
        config: The config of the sweep.
        job_overrides: The overrides of each cell.
        first: Number of the first cell.

    Raises:
        SystemExit: Cells can't be composed; all of them stand on standard error.
    """
    from gda.cluster.cells import Cell
    from gda.cluster.grid import stop_at
    from gda.config.faults import ConfigFaults, Fault

    cells, faults = [], []
    for number, overrides in enumerate(job_overrides, first):
        try:
            composed = hydra_context.config_loader.load_sweep_config(config, list(overrides))
        except HydraException as error:
            faults.append(Fault(f"the cell {' '.join(overrides)}", " ".join(str(error).split())))
            continue
        with open_dict(composed):
            composed.hydra.job.id = f"cell_{number}"
            composed.hydra.job.num = number
            del composed["hydra"]
        cells.append(Cell(number, tuple(overrides), composed))
    if faults:
        stop_at(ConfigFaults(faults))
    return cells
