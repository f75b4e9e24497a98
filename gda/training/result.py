"""What a finished run amounts to: its last and its best epoch."""

from collections.abc import Mapping, Sequence
from typing import Any

SELECTION = "validation_top1"
"""The metric that chooses the best epoch; it exists when validation images are held out."""

ORACLE = "test_top1"
"""The metric whose best epoch is recorded as an oracle: no one could have chosen it."""


def is_better(row: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
    """Says whether an epoch is the best so far on validation images; ties keep the earlier one."""
    if SELECTION not in row:
        return False
    return best is None or row[SELECTION] > best[SELECTION]


def result_of(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums up a run.

    Args:
        history: The rows of ``metrics.jsonl``; row 0 stands before training.

    Returns:
        ``last``: the last epoch's row. ``best``: the row of the best validation epoch; null when
        nothing is held out, for nothing is ever selected on test images. ``test_top1_oracle`` and
        ``oracle_epoch``: the best test figure of any epoch, which no one could have chosen.
    """
    rows = [dict(row) for row in history if row["epoch"] > 0]
    best: dict[str, Any] | None = None
    for row in rows:
        if is_better(row, best):
            best = row
    oracle = max(rows, key=lambda row: row.get(ORACLE, float("-inf")))
    return {
        "last": rows[-1],
        "best": best,
        "test_top1_oracle": oracle.get(ORACLE),
        "oracle_epoch": oracle["epoch"],
    }
