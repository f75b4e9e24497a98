"""The cells of a grid: checked whole before any of them runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from gda.config.check import check, fetch_weights, resolved
from gda.config.faults import ConfigFaults, Fault
from gda.config.weights import weights_at_hand


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        number: Its position in the grid.
        overrides: What it changes.
        config: What it composes to.
    """

    number: int
    overrides: tuple[str, ...]
    config: DictConfig


def check_cells(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Checks all cells; a fault that several cells share is reported once, with their number.

    Returns:
        The resolved configs, in the order of the cells.

    Raises:
        ConfigFaults: At least one cell can't be run.
    """
    configs = []
    found: dict[Fault, list[Cell]] = {}
    for cell in cells:
        try:
            config = resolved(cell.config)
            faults = check(config)
            configs.append(config)
        except ConfigFaults as error:
            faults = list(error.faults)
        for fault in faults:
            found.setdefault(fault, []).append(cell)
    if found:
        titles = titles_of(cells)
        faults = []
        for fault, where in found.items():
            cells_named = "all cells" if len(where) == len(cells) else _some(where, titles, len(cells))
            faults.append(Fault(fault.where, f"{fault.what} [in {cells_named}]", fault.fix))
        raise ConfigFaults(faults)
    return configs


def fetch_for(cells: Sequence[Cell], configs: Sequence[dict[str, Any]]) -> None:
    """Fetches the weights that checked cells name, and checks the cells with them.

    Raises:
        ConfigFaults: Weights can't be fetched, or do not fit.
    """
    if all(weights_at_hand(config) for config in configs):
        return
    faults = fetch_weights(configs)
    if faults:
        raise ConfigFaults(faults)
    check_cells(cells)


def titles_of(cells: Sequence[Cell]) -> dict[int, str]:
    """Names each cell, by its number, with the overrides that not all cells share."""
    shared = set(cells[0].overrides).intersection(*(cell.overrides for cell in cells))
    return {
        cell.number: " ".join(override for override in cell.overrides if override not in shared)
        or "single cell"
        for cell in cells
    }


def _some(cells: Sequence[Cell], titles: dict[int, str], total: int) -> str:
    first = titles[cells[0].number]
    return f"{len(cells)} of {total} cells, first: {first}" if len(cells) > 1 else f"the cell {first}"
