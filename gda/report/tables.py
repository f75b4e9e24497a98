"""Tables for a page (markdown) and for the terminal (rich)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from gda.report.aggregate import Table
from gda.report.column import Column, RowT, explained
from gda.report.columns import columns
from gda.report.episode_table import EACH_RUN, episode_columns, episode_rows
from gda.report.notes import notes
from gda.report.records import Fault, Study

PIPE_WIDTH = 240
"""Characters a line may have where no terminal says how many fit."""


def markdown_table(table: Table) -> str:
    """Write one table with its notes; the largest mean of a ranked column is bold."""
    chosen = columns(table)
    return _markdown(chosen, table.rows, notes(table, chosen))


def _markdown(columns: Sequence[Column[RowT]], rows: Sequence[RowT], notes: Sequence[str]) -> str:
    lines = [
        f"| {' | '.join(column.heading for column in columns)} |",
        f"| {' | '.join('---:' if column.figure else '---' for column in columns)} |",
    ]
    cells = [_bold_largest(rows, column) for column in columns]
    lines += [f"| {' | '.join(_escape(text) for text in row)} |" for row in zip(*cells, strict=True)]
    lines += ["", *(f"- {_escape(note)}" for note in notes)]
    return "\n".join(lines) + "\n"


def markdown_page(
    study: Study, tables: Sequence[Table], pictures: Mapping[str, Sequence[tuple[str, str]]]
) -> str:
    """Write the whole report.

    Args:
        study: what was read.
        tables: its tables.
        pictures: table title -> (file name, description) of its pictures.
    """
    blocks = [f"# Study {_escape(study.name)}\n", f"{summary_line(study)}\n"]
    for table in tables:
        blocks += [f"## {_escape(table.title)}\n", markdown_table(table)]
        if tested := episode_rows(table):
            shown = episode_columns(tested)
            blocks += [f"### {EACH_RUN}\n", _markdown(shown, tested, explained(shown))]
        blocks += [f"![{text}]({name})\n" for name, text in pictures.get(table.title, ())]
    if study.faults:
        listed = "".join(f"- {_escape(str(fault))}\n" for fault in study.faults)
        blocks += ["## Files that could not be used\n", listed]
    return "\n".join(blocks)


def print_tables(study: Study, tables: Sequence[Table], console: Console | None = None) -> None:
    """Print every table with its notes to the terminal, without the secondary columns of the page."""
    console = widened(console or Console())
    console.print(Text(f"Study {study.name}. {summary_line(study)}"))
    for table in tables:
        chosen = [column for column in columns(table) if column.primary]
        print_grid(console, table.title, chosen, table.rows, notes(table, chosen))
        if tested := episode_rows(table):
            shown = [column for column in episode_columns(tested) if column.primary]
            print_grid(console, EACH_RUN, shown, tested, explained(shown))
    _print_faults(study.faults, console)


def print_grid(
    console: Console,
    title: str,
    columns: Sequence[Column[RowT]],
    rows: Sequence[RowT],
    notes: Sequence[str],
) -> None:
    """Print rows under their headings, and notes below."""
    grid = RichTable(title=Text(title), title_justify="left")
    for column in columns:
        grid.add_column(Text(column.heading), justify="right" if column.figure else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(column.text(row)) for column in columns))
    console.print()
    console.print(grid)
    for note in notes:
        console.print(Text(f"- {note}"), soft_wrap=not console.is_terminal)


def widened(console: Console) -> Console:
    """Give a console that is no terminal the width of a table, and return it."""
    if not console.is_terminal:
        # A pipe or a file has no width; wrapped cells there can be read by nobody.
        console.width = max(console.width, PIPE_WIDTH)
    return console


def summary_line(study: Study) -> str:
    """Say in one sentence how much of the study is there."""
    if not study.runs and not study.cells:
        return "No runs and no sweep plans were found."
    there = {(run.method.group, run.seed) for run in study.runs}
    missing = sum((cell.method.group, cell.seed) not in there for cell in study.cells)
    states = {"failed": 0, "unfinished": 0}
    for run in study.runs:
        if not run.finished:
            states["failed" if run.state == "failed" else "unfinished"] += 1
    rest = [f"{count} {word}" for word, count in (*states.items(), ("planned but missing", missing)) if count]
    ending = f"; {', '.join(rest)}" if rest else ""
    none = "" if study.finished else " No finished run yet."
    return f"{study.finished} of {len(there) + missing} runs finished{ending}.{none}"


def _bold_largest(rows: Sequence[RowT], column: Column[RowT]) -> list[str]:
    texts = [column.text(row) for row in rows]
    if column.ranked is None:
        return texts
    means = [column.ranked(row).mean for row in rows]
    largest = max((mean for mean in means if mean is not None), default=None)
    if largest is None or sum(mean is not None for mean in means) < 2:
        return texts  # one figure alone is the largest of nothing
    pairs = zip(texts, means, strict=True)
    return [f"**{text}**" if mean == largest else text for text, mean in pairs]


def _escape(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _print_faults(faults: Sequence[Fault], console: Console) -> None:
    if faults:
        console.print(Text("\nFiles that could not be used:"))
        for fault in faults:
            console.print(Text(f"- {fault}"))
