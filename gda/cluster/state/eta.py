"""How long the runs of a study still take, from the epochs that were trained so far."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from gda.cluster.json_record import read_journal, whole_of
from gda.cluster.state.records import GOES_ON, CellState
from gda.cluster.state.run_evidence import age_of

_LAST_EPOCHS = 5
_RUNS_OF_GROUP = 3
_SLOW, _SLOW_SECONDS = 10, 600  # an epoch may take ten times as long as usual and ten minutes
_PARTS = ("train_seconds", "evaluate_seconds", "save_seconds")


class Pace:
    """Seconds of an epoch: of a run itself, else of its other seeds, else of the whole study.

    Args:
        folders: Run folders of the study.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._by_group: dict[str, list[Path]] = {}
        for folder in folders:
            self._by_group.setdefault(folder.parent.name, []).append(folder)
        self._of_group: dict[str, float | None] = {}

    def of(self, folder: Path) -> float | None:
        """Returns the median seconds of an epoch of a run; None where nothing tells."""
        for seconds in (epoch_seconds(folder), self._group(folder.parent.name)):
            if seconds is not None:
                return seconds
        groups = [seconds for name in self._by_group if (seconds := self._group(name)) is not None]
        return median(groups) if groups else None

    def _group(self, name: str) -> float | None:
        if name not in self._of_group:
            found: list[float] = []
            for folder in self._by_group.get(name, ()):
                seconds = epoch_seconds(folder)
                if seconds is not None:
                    found.append(seconds)
                if len(found) == _RUNS_OF_GROUP:  # more would cost more to read than they tell
                    break
            self._of_group[name] = median(found) if found else None
        return self._of_group[name]


def epoch_seconds(folder: Path) -> float | None:
    """Returns the median seconds of a run's last epochs; None before the first has ended.

    Args:
        folder: The run folder.
    """
    found = []
    for row in read_journal(folder / "timing.jsonl", last=_LAST_EPOCHS):
        parts = [row.get(part) for part in _PARTS]
        numbers = [part for part in parts if isinstance(part, int | float) and 0 <= part < 1e9]
        if numbers and (whole_of(row.get("epoch")) or 0) > 0:
            found.append(float(sum(numbers)))
    return median(found) if found else None


def estimated(
    states: Mapping[str, CellState],
) -> tuple[dict[str, CellState], float | None]:
    """Estimates how long every unfinished run of a study takes, and all of them together.

    Args:
        states: The study's runs, its inputs among them.

    Returns:
        The runs with their estimates, and the seconds until all have ended that go on by themselves:
        None where none does, or where one of them can't be estimated.
    """
    if all(state.state == "done" for state in states.values()):
        return dict(states), None
    pace = Pace(state.folder for state in states.values())
    lengths = {state.epochs for state in states.values() if state.epochs}
    usual = lengths.pop() if len(lengths) == 1 else None
    found = {}
    for key, state in states.items():
        found[key] = replace(state, seconds_left=_left(state, pace, usual), detail=_with_delay(state))
    ahead = [state for state in found.values() if state.state in (*GOES_ON, "waiting")]
    if not any(state.state in GOES_ON for state in ahead):
        return found, None  # nobody is about to run what waits
    return found, _together(ahead)


def in_words(seconds: float) -> str:
    """Writes a time for people: ``40 s``, ``12 min``, ``3 h 20 min``, ``2 days 4 h``."""
    if seconds < 59.5:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h" if hours else f"{days} days"


def _left(state: CellState, pace: Pace, usual: int | None) -> float | None:
    """Returns how long one run still takes; epochs that nothing tells are those of all others."""
    epochs = state.epochs or usual
    if state.state == "done" or epochs is None:
        return None
    left = max(epochs - (state.epoch or 0), 0)
    each = pace.of(state.folder)
    if each is None:
        return None
    since = (age_of(state.updated or "") or 0.0) if state.state == "running" else 0.0
    return max(left * each - min(since, each), 0.0)


def _with_delay(state: CellState) -> str:
    """Returns the detail of a run, and whether it seems to hang: its process may beat and do nothing else."""
    each = epoch_seconds(state.folder) if state.state == "running" else None
    since = age_of(state.updated or "")
    if each is None or since is None or since < _SLOW * each + _SLOW_SECONDS:
        return state.detail
    return f"{state.detail}, but no epoch has ended for {in_words(since)}, where {in_words(each)} is usual"


def _together(ahead: Sequence[CellState]) -> float | None:
    """Returns how long runs take together, as many at a time as run now."""
    each = [state.seconds_left for state in ahead if state.seconds_left is not None]
    if len(each) < len(ahead):
        return None
    at_once = max(sum(state.state == "running" for state in ahead), 1)
    return max(sum(each) / at_once, *each)
