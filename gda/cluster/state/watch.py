"""Looks at a study again and again until nothing is left to wait for."""

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from gda.cluster.state.records import StudyState
from gda.cluster.state.study_state import study_state
from gda.cluster.state.table import headline, view


def watch(
    study: Path,
    seconds: float,
    console: Console,
    until: Callable[[StudyState], bool] = lambda state: state.done,
    every: bool = False,
) -> StudyState:
    """Shows how a study stands, and keeps that up to date.

    On a terminal the table is renewed in place. Elsewhere a line is written whenever the counts have
    changed, and the table at the end.

    Args:
        study: The study's folder.
        seconds: Pause between two looks.
        console: Where to show it.
        until: Tells whether to stop; by default when every cell is done.
        every: Whether to list every run (see :func:`gda.cluster.state.table.view`).

    Returns:
        The last state seen.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the last table stays on the terminal.
    """
    look = _in_place if console.is_terminal else _line_by_line
    return look(study, seconds, console, until, every)


def _in_place(
    study: Path, seconds: float, console: Console, until: Callable[[StudyState], bool], every: bool
) -> StudyState:
    state = study_state(study)
    with Live(view(state, every), console=console, auto_refresh=False) as live:
        while not until(state):
            note = Text(f"\n{time.strftime('%H:%M:%S')}, again every {seconds:g} s; Ctrl-C ends this, no run")
            live.update(Group(view(state, every), note), refresh=True)
            time.sleep(seconds)
            state = study_state(study)
        live.update(view(state, every), refresh=True)
    return state


def _line_by_line(
    study: Path, seconds: float, console: Console, until: Callable[[StudyState], bool], every: bool
) -> StudyState:
    state = study_state(study)
    counts = None
    while not until(state):
        if state.counts != counts:
            console.print(Text(f"{time.strftime('%H:%M:%S')} {headline(state)}"))
            counts = state.counts
        time.sleep(seconds)
        state = study_state(study)
    console.print(view(state, every))
    return state
