"""The columns of a table, shared by the markdown page and the terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gda.report.aggregate import Row, Table
from gda.report.spread import Summary
from gda.report.wording import difference, mean_and_std, mean_only, not_done


@dataclass(frozen=True)
class Column:
    """A heading and the text below it.

    Attributes:
        ranked: the figure whose largest mean is set in bold; None for columns that must not
            be ranked, such as figures that were selected on the test set.
        primary: shown on the terminal too, which is narrower than a page.
    """

    heading: str
    text: Callable[[Row], str]
    ranked: Callable[[Row], Summary] | None = None
    figure: bool = True
    primary: bool = True


def columns(table: Table) -> list[Column]:
    """Choose the columns a table has figures for; accuracies are test top-1 in percent."""
    chosen = [
        Column("method", lambda row: row.label, figure=False),
        Column("n", lambda row: str(len(row.done))),
        Column("last", lambda row: mean_and_std(row.last), lambda row: row.last),
    ]
    if any(row.best.n for row in table.rows):
        chosen.append(
            Column(
                "best (on validation)", lambda row: mean_and_std(row.best, row.last.n), lambda row: row.best
            )
        )
    if any(row.oracle.n for row in table.rows):
        # Not ranked: a maximum over test figures is no result, and bold would make it look like one.
        chosen.append(Column("oracle (selected on test)", lambda row: mean_and_std(row.oracle, row.last.n)))
    chosen += [
        Column("last vs alignment=none", lambda row: difference(row.difference["twin", "last"])),
        Column("last vs vanilla", lambda row: difference(row.difference["vanilla", "last"])),
    ]
    if any(row.best.n for row in table.rows):
        chosen += [
            Column(
                "best vs alignment=none",
                lambda row: difference(row.difference["twin", "best"]),
                primary=False,
            ),
            Column(
                "best vs vanilla", lambda row: difference(row.difference["vanilla", "best"]), primary=False
            ),
        ]
    optional = (
        (any(row.agreement.n for row in table.rows), "agreement %", lambda row: mean_only(row.agreement, 2)),
        (any(row.ece.n for row in table.rows), "ECE", lambda row: mean_only(row.ece, 4)),
        (any(row.teacher_kl.n for row in table.rows), "teacher KL", lambda row: mean_only(row.teacher_kl, 4)),
    )
    chosen += [Column(heading, text, primary=False) for there, heading, text in optional if there]
    return [*chosen, Column("not done", not_done, figure=False)]
