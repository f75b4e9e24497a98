"""What a finished run amounts to: its last and its best epoch.

A task is judged by one figure, such as ``top1``. ``validation_top1`` chooses the best epoch; it exists
where something is held out. The best epoch of ``test_top1`` is recorded as an oracle: no one could have
chosen it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any


def is_better(row: Mapping[str, Any], best: Mapping[str, Any] | None, figure: str = "top1") -> bool:
    """Says whether an epoch is the best so far on what is held out; ties keep the earlier one.

    Args:
        row: Its metrics. An epoch that was not evaluated is not better.
        best: The best row so far.
        figure: Name of the figure that the task is judged by.
    """
    selection = f"validation_{figure}"
    if selection not in row:
        return False
    return best is None or row[selection] > best[selection]


def result_of(history: Sequence[Mapping[str, Any]], figure: str = "top1") -> dict[str, Any]:
    """Sums up a run.

    Args:
        history: The rows of ``metrics.jsonl``; row 0 stands before training.
        figure: Name of the figure that the task is judged by.

    Returns:
        ``last``: the last epoch's row. ``best``: the row of the best validation epoch; null when
        nothing is held out, for nothing is ever selected on test images. ``test_FIGURE_oracle`` and
        ``oracle_epoch``: the best test figure of any epoch, which no one could have chosen.
    """
    rows = [dict(row) for row in history if row["epoch"] > 0]
    best: dict[str, Any] | None = None
    for row in rows:
        if is_better(row, best, figure):
            best = row
    tested = f"test_{figure}"
    oracle = max(rows, key=lambda row: row.get(tested, float("-inf")))
    return {
        "last": rows[-1],
        "best": best,
        f"{tested}_oracle": oracle.get(tested),
        "oracle_epoch": oracle["epoch"],
    }


def in_words(figure: str) -> str:
    """Returns the name of a figure as it is read: ``top-1``, ``1-shot``."""
    return re.sub(r"^(top)(\d+)$|^(\d+)(shot)$", lambda found: "-".join(filter(None, found.groups())), figure)
