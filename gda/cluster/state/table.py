"""The status of a study for the terminal: the counts first, then the runs by state."""

from collections.abc import Sequence
from textwrap import shorten

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from gda.cluster.state.cell_state import STATES
from gda.cluster.state.eta import in_words
from gda.cluster.state.records import CellState, StudyState

ROWS = 12
"""Runs of one state that are listed where not all are asked for."""

ERROR_CHARACTERS = 160
"""Of an error's first line, where not the whole of it is asked for."""

PIPE_WIDTH = 240
"""Characters a line may have where no terminal says how many fit."""

_STYLES = {
    "done": "green", "running": "cyan", "queued": "blue", "preempted": "yellow", "interrupted": "yellow",
    "cancelled": "yellow", "blocked": "magenta", "failed": "red", "lost": "red", "unknown": "red",
}  # fmt: skip


def headline(state: StudyState) -> str:
    """Says in one sentence how a study stands."""
    if not state.cells:
        return f"{state.name}: no runs and no sweep plans were found."
    counts = ", ".join(f"{count} {name}" for name, count in state.counts.items())
    left = f"; about {in_words(state.seconds_left)} left" if state.seconds_left is not None else ""
    return f"{state.name}: {len(state.cells)} cell{'s' * (len(state.cells) != 1)}: {counts}{left}"


def view(state: StudyState, every: bool = False, hint: bool = True) -> RenderableType:
    """Shows how a study stands.

    Args:
        state: The study.
        every: Whether to list every run, however many there are of one state.
        hint: Whether to tell of ``--failed`` where a run has failed.
    """
    blocks: list[RenderableType] = [Text(headline(state), style="bold")]
    if state.queue_fault:
        blocks.append(
            Text(f"SLURM could not be asked ({state.queue_fault}): what follows is from disk alone.")
        )
    marked = any(cell.planned for cell in state.cells)  # where nothing was planned, no run stands out
    sections = (("Runs that cells build on:", state.inputs), ("Cells:", state.cells))
    for title, runs in sections:
        if runs:
            blocks += [Text(f"\n{title}" if state.inputs else ""), _table(runs, every, marked)]
    if hint and any(run.state == "failed" for run in (*state.inputs, *state.cells)):
        blocks.append(Text("\n--failed shows the tracebacks."))
    if state.faults:
        blocks.append(Text("\nFiles that could not be used:"))
        blocks += [Text(f"- {fault}") for fault in state.faults]
    return Group(*blocks)


def console_for_states() -> Console:
    """Returns a console on standard output that does not break lines where nobody sees its width."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)
    return console


def _table(runs: Sequence[CellState], every: bool, marked: bool) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", min_width=16)
    table.add_column(overflow="fold", min_width=24)
    for name in STATES:
        group = [run for run in runs if run.state == name]
        if not group:
            continue
        # Many that need nobody's attention are a number, not a list.
        shown = group if every else ([] if name == "done" and len(group) > ROWS else group[:ROWS])
        advices = {run.advice for run in group}
        word = Text(name, style=_STYLES.get(name, ""))
        for run in shown:
            table.add_row(word, _title(run, marked), _detail(run, with_advice=len(advices) > 1))
            word = Text("")
        if len(shown) < len(group):
            more = f"and {len(group) - len(shown)} more" if shown else f"{len(group)} cells"
            table.add_row(word, Text(more), Text("--all lists them", style="dim"))
        if len(advices) == 1 and group[0].advice:
            table.add_row("", "", Text(f"-> {group[0].advice}", style="dim"))
    return table


def _title(run: CellState, marked: bool) -> Text:
    return Text(run.title if run.planned or not marked else f"{run.title} (in no plan)")


def _detail(run: CellState, with_advice: bool) -> Text:
    error = shorten(run.error, ERROR_CHARACTERS, placeholder=" ...") if run.error else ""
    parts = [f"{error} ({run.detail})" if error and run.detail else error or run.detail]
    if run.state == "running" and run.seconds_left is not None:
        parts.append(f", about {in_words(run.seconds_left)} left")
    if with_advice and run.advice:
        parts.append(f"; {run.advice}")
    return Text("".join(parts))
