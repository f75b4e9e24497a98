"""`python -m gda.status STUDY`: how a study stands, run by run.

With ``--json`` it prints one object. Keys may be added; these stay as long as ``format`` is 1::

    format        1
    study         name of the study
    folder        its absolute path
    done          whether there are cells and all of them are done
    counts        {state: number of cells}, every state (gda.cluster.state.cell_state.STATES)
    cells         the study's runs, those that are planned first: [{
        folder        absolute path of the run folder
        title         what it is called
        state         done | running | queued | preempted | waiting | interrupted | cancelled |
                      blocked | failed | lost | unknown
        detail        more in words; may be empty
        advice        what to do; may be empty
        error         first line of the error, or null
        planned       whether a plan names it
        job           id of its SLURM job, or null
        log           path of that job's output for this run, or null
        epoch         epochs done, or null
        epochs        length of training, or null
        step          steps of the next epoch that are saved besides
        updated       when its status last changed (ISO), or null
        attempts      how often it was begun
        began         when its last attempt began (ISO), or null
        seconds_left  estimate for this run alone, or null
        traceback     only with --failed: the traceback or the end of the job's output, or null
    }]
    inputs        unfinished runs that cells build on, as in cells
    seconds_left  estimate for everything that goes on by itself, or null
    queue_fault   why SLURM could not be asked, or null
    faults        ["file: what is wrong with it"]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gda.cluster.state.cell_state import STATES
from gda.cluster.state.failure import failure_text
from gda.cluster.state.study_state import CellState, StudyState, studies_in, study_state
from gda.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

WATCH_SECONDS = 10.0
_SHORTEST_SECONDS = 1.0


class UnknownStudy(UserError):
    """The command names a study that does not exist."""

    exit_code = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0 when every cell is done, 1 when not, 2 for a wrong command."""
    options = _options(arguments)
    try:
        study = find_study(options.runs, options.study)
        state = _watched(study, options) if options.watch else study_state(study)
        if options.json:
            print(json.dumps(as_json(state, options.failed), indent=2))
        else:
            _print(state, options, with_table=not options.watch)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 1
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0 if state.done else 1


def find_study(runs: Path, name: str) -> Path:
    """Returns the folder of a study.

    Args:
        runs: The folder that holds all studies.
        name: Name of the study.

    Raises:
        UnknownStudy: There is none of that name; the message says which there are.
    """
    folder = runs / name
    if name.strip("./") and folder.is_dir():
        return folder
    if not runs.is_dir():
        raise UnknownStudy(
            f"There is no run folder {str(runs)!r} here, so no study {name!r}. "
            "Name the folder that holds the studies with --runs DIR."
        )
    from gda.suggestions import did_you_mean

    hint = did_you_mean(Path(name).name, studies_in(runs))
    raise UnknownStudy(f"There is no study {name!r} in {str(runs)!r}; {hint}")


def as_json(state: StudyState, with_tracebacks: bool = False) -> dict[str, Any]:
    """Returns how a study stands as the module describes it.

    Args:
        state: The study.
        with_tracebacks: Whether to add the tracebacks of failed runs.
    """

    def plain(run: CellState) -> dict[str, Any]:
        known = asdict(run) | {"folder": str(run.folder)}
        del known["in_job_log"]
        failure = failure_text(run) if with_tracebacks else None
        return known | ({"traceback": failure.text if failure else None} if with_tracebacks else {})

    return {
        "format": 1,
        "study": state.name,
        "folder": str(state.folder),
        "done": state.done,
        "counts": {name: state.counts.get(name, 0) for name in STATES},
        "cells": [plain(cell) for cell in state.cells],
        "inputs": [plain(entry) for entry in state.inputs],
        "seconds_left": state.seconds_left,
        "queue_fault": state.queue_fault,
        "faults": list(state.faults),
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m gda.status",
        description="How a study stands: the state of every run, from its folder and from SLURM's queue.",
        epilog="Exit code: 0 when every cell is done, 1 when not, 2 for a wrong command.",
    )
    parser.add_argument("study", metavar="STUDY", nargs="?", help="name of the study: a folder below runs")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="run folder (default: runs)"
    )
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        const=str(WATCH_SECONDS),
        help=f"look again every so often (default: {WATCH_SECONDS:g} s) until all is done, or Ctrl-C",
    )
    parser.add_argument("--failed", action="store_true", help="show the tracebacks of failed runs")
    parser.add_argument("--all", action="store_true", help="list every run, however many there are")
    parser.add_argument("--json", action="store_true", help="print one JSON object (see pydoc gda.status)")
    options = parser.parse_args(arguments)
    if options.watch is not None:
        try:
            options.watch = max(float(options.watch), _SHORTEST_SECONDS)
        except ValueError:  # `--watch STUDY`: argparse takes the study for the seconds
            if options.study is not None:
                parser.error(f"--watch takes a number of seconds, not {options.watch!r}")
            options.study, options.watch = options.watch, WATCH_SECONDS
    if options.study is None:
        parser.error("name the study: python -m gda.status STUDY")
    if options.watch and options.json:
        parser.error("--json looks once; leave --watch out")
    return options


def _watched(study: Path, options: argparse.Namespace) -> StudyState:
    from gda.cluster.state.watch import watch

    return watch(study, options.watch, _console(), every=options.all)


def _print(state: StudyState, options: argparse.Namespace, with_table: bool) -> None:
    from rich.text import Text

    from gda.cluster.state.table import view

    console = _console()
    if with_table:
        console.print(view(state, options.all, hint=not options.failed))
    for run in (*state.inputs, *state.cells) if options.failed else ():
        failure = failure_text(run)
        if failure is not None:
            console.print(Text(f"\n{run.title}, {failure.source}:", style="bold"))
            console.print(Text(failure.text), soft_wrap=True)


def _console() -> Console:
    from gda.cluster.state.table import console_for_states

    return console_for_states()


if __name__ == "__main__":
    sys.exit(main())
