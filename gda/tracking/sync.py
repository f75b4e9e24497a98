"""Ships what MLflow lacks: ``python -m gda.tracking.sync [STUDY ...] [--runs RUNS] [--uri URI]``.

The run folders are the truth and MLflow is their mirror, so this may be run at any time, also while
runs go on, and as often as one likes.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gda.errors import UserError
from gda.tracking.mlflow_mirror import recorded_uri, ship
from gda.tracking.mlflow_store import absolute_uri, check_store, default_uri, one_line


def sync_runs(
    folders: Sequence[Path],
    uri_of: Callable[[Path], str],
    say: Callable[[str], None] = print,
) -> bool:
    """Ship run folders one after the other; a failure of one does not stop the others.

    Args:
        folders: The run folders.
        uri_of: Names the tracking URI of a run folder.
        say: Takes one line a run, and a total.

    Returns:
        Whether MLflow has everything now.
    """
    shipped = rows = failed = 0
    refusals: dict[str, str | None] = {}  # each store is asked once: a dead one takes its time
    for folder in folders:
        name = "/".join(folder.absolute().parts[-3:])
        uri = uri_of(folder)
        if uri not in refusals:
            try:
                check_store(uri)
                refusals[uri] = None
            except UserError as error:
                refusals[uri] = str(error)
                say(f"error: {error}")
        if refusals[uri] is not None:
            failed += 1
            say(f"{name}: failed: no store at {uri}")
            continue
        try:
            shipment = ship(folder, uri, verify=True)
        except Exception as error:  # one bad folder must not hold up the rest
            failed += 1
            say(f"{name}: failed: {one_line(error)}")
            continue
        if shipment.changed:
            shipped += 1
            rows += shipment.rows
            say(f"{name}: shipped {shipment.rows} row{'' if shipment.rows == 1 else 's'}")
        else:
            say(f"{name}: up to date")
    total = len(folders)
    say(
        f"{total} run{'' if total == 1 else 's'}: {shipped} shipped ({rows} rows), "
        f"{total - shipped - failed} up to date, {failed} failed"
    )
    return failed == 0


def find_runs(runs_root: Path, studies: Sequence[str] = ()) -> list[Path]:
    """Find run folders.

    Args:
        runs_root: The folder that holds the studies.
        studies: Names of studies; all, ``teachers`` included, if none is given.

    Returns:
        The run folders, sorted.

    Raises:
        UserError: If the folder or a study does not exist.
    """
    if not runs_root.is_dir():
        raise UserError(f"There is no folder {runs_root}. Name the folder of the runs with --runs.")
    by_study: dict[str, list[Path]] = {}
    for facts in sorted(runs_root.glob("*/*/seed*/run.json")):
        by_study.setdefault(facts.parents[2].name, []).append(facts.parent)
    unknown = [study for study in studies if study not in by_study]
    if unknown:
        parts = []
        for study in unknown:
            near = difflib.get_close_matches(study, by_study, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else "."
            parts.append(f"There are no runs of a study {study!r} in {runs_root}{hint}")
        if by_study:
            parts.append(f"Studies: {', '.join(by_study)}.")
        raise UserError(" ".join(parts))
    return [folder for study in (dict.fromkeys(studies) or by_study) for folder in by_study[study]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The arguments; those of the process by default.

    Returns:
        The exit status: 0 only if MLflow has everything.
    """
    parser = argparse.ArgumentParser(
        prog="python -m gda.tracking.sync",
        description="Ship what MLflow lacks of the run folders. Safe while runs go on, and to repeat.",
    )
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="studies to ship; all by default")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the studies (runs)")
    parser.add_argument(
        "--uri",
        help="MLflow tracking URI; by default the one that each run was shipped to before, else "
        "MLFLOW_TRACKING_URI, else mlflow.db in the folder of the runs",
    )
    options = parser.parse_args(arguments)
    fallback = os.environ.get("MLFLOW_TRACKING_URI") or default_uri(options.runs)
    try:
        fixed = absolute_uri(options.uri) if options.uri else None
        folders = find_runs(options.runs, options.studies)

        def uri_of(folder: Path) -> str:
            return fixed or recorded_uri(folder) or absolute_uri(fallback)

        return 0 if sync_runs(folders, uri_of) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
