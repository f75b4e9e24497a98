"""The rows of a run, epoch by epoch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from gda.report.fields import numbers, whole
from gda.report.records import Fault, Figures


def read_curve(path: Path, name: str, faults: list[Fault]) -> dict[int, Figures]:
    """Read metrics.jsonl. An epoch written twice (resumed after a kill) counts as last written.

    Args:
        path: the file.
        name: the run folder, as faults name it.
        faults: gets a fault where lines cannot be read.

    Returns:
        Epoch -> figures, in order; empty without the file.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return {}  # a run that has not finished an epoch has none
    curve: dict[int, Figures] = {}
    broken = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            # The last line may be torn by a kill, which is no fault; elsewhere it is worth a word.
            broken += number < len(lines)
            continue
        epoch = whole(row.get("epoch")) if isinstance(row, Mapping) else None
        if epoch is None:
            broken += 1
            continue
        curve[epoch] = numbers(row)
    if broken:
        faults.append(Fault(name, f"metrics.jsonl: {broken} unreadable line(s) ignored"))
    return dict(sorted(curve.items()))
