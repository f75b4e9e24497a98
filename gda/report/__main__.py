"""`python -m gda.report STUDY`: print the tables of a study and write its report."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from gda.errors import UserError
from gda.report.collect import is_study
from gda.report.tables import print_tables
from gda.report.write import write_report
from gda.tracking.report_artifacts import log_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. The last line printed is the path of the page."""
    parser = argparse.ArgumentParser(
        prog="python -m gda.report",
        description="Compare the runs of a study: tables on the terminal; page, CSV and pictures on disk.",
    )
    parser.add_argument("study", metavar="STUDY", help="name of the study: a folder below the run folder")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="run folder (default: runs)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write (default: RUNS/STUDY/report)"
    )
    options = parser.parse_args(arguments)
    try:
        study = find_study(options.runs, options.study)
        report = write_report(study, options.output)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"The report cannot be written: {error.strerror}: {error.filename}.", file=sys.stderr)
        return 1
    print_tables(report.study, report.tables)
    try:
        log_report(study, report.files)
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)
    print(report.page)
    return 0


def find_study(runs: Path, name: str) -> Path:
    """Return the folder of a study.

    Args:
        runs: the folder that holds all studies.
        name: name of the study.

    Raises:
        UserError: there is no such study; the message names near matches and what there is.
    """
    folder = runs / name
    if name.strip("./") and folder.is_dir():
        return folder
    if not runs.is_dir():
        raise UserError(
            f"There is no run folder {str(runs)!r} here, so no study {name!r}. "
            f"Name the folder that holds the studies with --runs DIR."
        )
    known = sorted(path.name for path in runs.iterdir() if is_study(path))
    wanted = Path(name).name
    by_folding = {study.lower(): study for study in known}
    near = [by_folding[match] for match in difflib.get_close_matches(wanted.lower(), by_folding, n=3)]
    hint = f" Did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
    there = f" Studies there are: {', '.join(known)}." if known else " It holds no studies yet."
    raise UserError(f"There is no study {name!r} in {str(runs)!r}.{hint}{there}")


if __name__ == "__main__":
    sys.exit(main())
