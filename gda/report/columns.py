"""The columns of a table, shared by the markdown page and the terminal."""

from __future__ import annotations

from collections.abc import Callable

from gda.report.aggregate import Row, Table
from gda.report.column import Column
from gda.report.few_shot_columns import beside_columns, fidelity_note
from gda.report.spread import Summary
from gda.report.wording import difference, mean_and_std, mean_only, not_done


def columns(table: Table) -> list[Column[Row]]:
    """Choose the columns a table has figures for; accuracies are in percent."""
    chosen: list[Column[Row]] = [
        Column("method", lambda row: row.label, figure=False),
        Column("n", lambda row: str(len(row.done))),
        Column(table.heading, lambda row: mean_and_std(row.last), _ranked(table, lambda row: row.last)),
    ]
    if any(row.best.n for row in table.rows):
        chosen.append(
            Column(
                "best (on validation)",
                lambda row: mean_and_std(row.best, row.last.n),
                _ranked(table, lambda row: row.best),
            )
        )
    if any(row.oracle.n for row in table.rows):
        # Not ranked: a maximum over test figures is no result, and bold would make it look like one.
        chosen.append(Column("oracle (selected on test)", lambda row: mean_and_std(row.oracle, row.last.n)))
    chosen += [
        Column(f"{table.heading} vs alignment=none", lambda row: difference(row.difference["twin", "last"])),
        Column(f"{table.heading} vs vanilla", lambda row: difference(row.difference["vanilla", "last"])),
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
    chosen += beside_columns(table)
    optional = (
        (any(row.agreement.n for row in table.rows), "agreement %", lambda row: mean_only(row.agreement, 2)),
        (any(row.ece.n for row in table.rows), "ECE", lambda row: mean_only(row.ece, 4)),
        (any(row.teacher_kl.n for row in table.rows), "teacher KL", lambda row: mean_only(row.teacher_kl, 4)),
    )
    chosen += [
        Column(heading, text, primary=False, note=fidelity_note(table, heading))
        for there, heading, text in optional
        if there
    ]
    return [*chosen, Column("not done", not_done, figure=False)]


def _ranked(table: Table, figure: Callable[[Row], Summary]) -> Callable[[Row], Summary] | None:
    """Rank a column, unless its rows are judged by different figures."""
    return figure if len(table.figure_texts) == 1 else None
