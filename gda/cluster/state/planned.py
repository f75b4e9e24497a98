"""What the sweeps of a study intended: all their plans as one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gda.cluster.json_record import Unreadable, read_record, text_of, whole_of
from gda.cluster.state.submission import sweeps_of

PLAN_FILE = "plan.json"
_ALONE = "single cell"  # what a plan calls a cell that no override tells from others


@dataclass(frozen=True)
class PlannedCell:
    """A cell that at least one plan names.

    Attributes:
        folder: Its run folder below the study, ``NAME-GROUP/seedK``.
        title: What the newest plan calls it.
        label: Method and seed.
        epochs: Length of its training, where a plan tells.
    """

    folder: str
    title: str
    label: str
    epochs: int | None = None


@dataclass(frozen=True)
class PlannedInput:
    """A run that cells build on.

    Attributes:
        folder: Its run folder.
        title: What it is called.
    """

    folder: Path
    title: str


@dataclass(frozen=True)
class Planned:
    """What the plans of a study name.

    Attributes:
        cells: By run folder below the study, in the order in which the plans came to name them.
        inputs: By :func:`run_key`.
        faults: Plans that can't be used, and why.
    """

    cells: Mapping[str, PlannedCell]
    inputs: Mapping[str, PlannedInput]
    faults: tuple[str, ...]


def run_key(folder: Path | str) -> str:
    """Names a run whatever path leads to it: ``STUDY/NAME-GROUP/seedK``.

    A run root may be mounted elsewhere on the machine that looks than on the one that submitted.
    """
    return "/".join(Path(folder).parts[-3:])


def read_planned(study: Path) -> Planned:
    """Reads all plans of a study.

    Args:
        study: The study's folder, ``RUNS/STUDY``.
    """
    cells: dict[str, PlannedCell] = {}
    inputs: dict[str, PlannedInput] = {}
    faults: list[str] = []
    plans = 0
    for sweep in sweeps_of(study):
        where = f"{sweep.name}/{PLAN_FILE}"
        try:
            plan = read_record(sweep / PLAN_FILE)
        except Unreadable as reason:
            faults.append(f"sweeps/{where}: {reason}")
            continue
        if plan is None:
            continue
        if plan.get("format", 1) != 1:
            faults.append(f"sweeps/{where} has format {plan['format']!r}; this version reads 1")
            continue
        named = plan.get("cells")
        found = [cell for cell in map(_cell, _list(named)) if cell is not None]
        if not isinstance(named, list) or len(found) < len(named):
            faults.append(f"sweeps/{where} names cells that can't be read")
        plans += bool(found)
        cells |= {cell.folder: cell for cell in found}
        for entry in map(_input, _list(plan.get("inputs"))):
            if entry is not None:
                inputs[run_key(entry.folder)] = entry
    cells = _titled(cells, by_label=plans > 1)
    own = {run_key(study / folder) for folder in cells}
    return Planned(cells, {key: entry for key, entry in inputs.items() if key not in own}, tuple(faults))


def _titled(cells: dict[str, PlannedCell], by_label: bool) -> dict[str, PlannedCell]:
    """Gives the cells titles that tell them apart.

    A plan's own titles do: they name what its cells differ by. The titles of two plans together may not.
    """
    own = {name: cell.label if cell.title == _ALONE else cell.title for name, cell in cells.items()}
    label = {name: cell.label for name, cell in cells.items()}
    folder = {name: name for name in cells}
    ways = (label, own, folder) if by_label else (own, label, folder)
    titles = next(way for way in ways if all(way.values()) and _differ(way.values()))
    return {name: replace(cell, title=titles[name]) for name, cell in cells.items()}


def _differ(titles: Iterable[str]) -> bool:
    titles = list(titles)
    return len(set(titles)) == len(titles)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _cell(facts: Any) -> PlannedCell | None:
    folder = text_of(facts.get("folder")) if isinstance(facts, Mapping) else None
    if folder is None or len(Path(folder).parts) != 2 or {"..", "/"} & set(Path(folder).parts):
        return None
    label, seed = text_of(facts.get("label")), whole_of(facts.get("seed"))
    return PlannedCell(
        folder=folder,
        title=text_of(facts.get("title")) or "",
        label=f"{label} seed {seed}" if label and seed is not None else folder,
        epochs=whole_of(facts.get("epochs")),
    )


def _input(entry: Any) -> PlannedInput | None:
    folder = text_of(entry.get("folder")) if isinstance(entry, Mapping) else None
    if folder is None or len(Path(folder).parts) < 3:
        return None
    return PlannedInput(Path(folder), text_of(entry.get("title")) or "/".join(Path(folder).parts[-2:]))
