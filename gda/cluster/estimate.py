"""How long runs will take, by what past runs of their kind took."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

LIKENESS = (
    ("task", "pair", "label", "dataset", "recipe"),
    ("task", "pair", "dataset", "recipe"),
    ("task", "student", "dataset", "recipe"),
)
"""Facts in which a past run must be like a wanted one; the first that any past run meets decides."""

_TIMES = ("train_seconds", "evaluate_seconds", "save_seconds")
_NEWEST = 10  # past runs that are looked into: enough for a median, and few files to read
_READ_BYTES = 64_000  # of a journal of times, its end: some hundreds of epochs

Kind = tuple[Any, ...]


def estimated_seconds(runs: Path, wanted: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Estimates how long runs will take, each on its own.

    A run's time is its number of epochs times the median over its newest ten past kin of their median
    epoch: training, evaluation and saving. Those may have run on another machine.

    Args:
        runs: Folder of all studies. Nothing in it, whatever its state, stops the estimate.
        wanted: For each run what a plan says of it (``task``, ``pair``, ``label``, ``dataset``,
            ``recipe``, ``student``), and its number of ``epochs``.

    Returns:
        Seconds for each run, in order; ``None`` where no past run is like it.
    """
    asked = {_kind(run, facts) for run in wanted for facts in LIKENESS}
    past: dict[Kind, list[tuple[str, Path]]] = {}
    for folder, facts in _past_runs(runs):
        for like in LIKENESS:
            kind = _kind(facts, like)
            if kind in asked:
                past.setdefault(kind, []).append((str(facts.get("created")), folder))
    known: dict[Kind, float | None] = {}
    epochs: dict[Path, float | None] = {}
    estimates = []
    for run in wanted:
        seconds = None
        for like in LIKENESS:
            kind = _kind(run, like)
            if kind not in known:
                known[kind] = _typical_epoch(past.get(kind, []), epochs)
            if known[kind] is not None:
                seconds = known[kind]
                break
        estimates.append(None if seconds is None else seconds * run["epochs"])
    return estimates


def _kind(facts: Mapping[str, Any], like: Sequence[str]) -> Kind:
    return tuple(like) + tuple(str(facts.get(name)) for name in like)


def _past_runs(runs: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yields the run folders that hold times, with their facts."""
    for times in runs.glob("*/*/seed*/timing.jsonl"):
        try:
            facts = json.loads((times.parent / "run.json").read_bytes())
        except (OSError, ValueError):  # none, or a torn one
            continue
        if isinstance(facts, Mapping):
            yield times.parent, facts


def _typical_epoch(past: list[tuple[str, Path]], epochs: dict[Path, float | None]) -> float | None:
    """Returns the median of the newest runs' median seconds of an epoch; ``epochs`` keeps what was read."""
    found: list[float] = []
    for _, folder in sorted(past, reverse=True):
        if folder not in epochs:
            epochs[folder] = _median_epoch(folder / "timing.jsonl")
        seconds = epochs[folder]
        if seconds is not None:
            found.append(seconds)
        if len(found) == _NEWEST:
            break
    return median(found) if found else None


def _median_epoch(times: Path) -> float | None:
    """Returns a run's median seconds of an epoch, by the end of its journal."""
    try:
        with times.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _READ_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    each = [seconds for line in lines if (seconds := _epoch_seconds(line)) is not None]
    return median(each) if each else None


def _epoch_seconds(line: bytes) -> float | None:
    """Returns the seconds of one line; none for what is torn or damaged."""
    try:
        row = json.loads(line)
        return sum(float(row[name]) for name in _TIMES)
    except (ValueError, TypeError, KeyError):
        return None
