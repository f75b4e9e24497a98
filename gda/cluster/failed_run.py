"""Runs that fail from outside: their own process was not let begin, or could not say what happened to it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gda.errors import UserError
from gda.tracking.lock import FolderLocked
from gda.tracking.run_folder import RunFolder


def mark_failed(folder: Path, error: Exception, before: Mapping[str, Any] | None = None) -> None:
    """Marks a run failed, unless it is done, or another process works on it.

    Args:
        folder: The run folder; made where the run never began.
        error: Why it failed; its first line is what ``status.json`` says.
        before: The status that the run had before an attempt: when the attempt itself has marked the run
            failed, that is left as it is. None marks it in any case.
    """
    run = RunFolder(folder)
    try:
        with run.owned():
            status = run.status()
            said = before is not None and status.get("state") == "failed" and status != before
            if not run.is_done() and not said:
                with run.logged():
                    run.fail(error)
    except FolderLocked:
        pass


def is_finished(folder: Path, needed: tuple[str, ...] = ()) -> bool:
    """Says whether a run is done, and holds the checkpoints that others need of it."""
    return RunFolder(folder).is_done() and all((folder / name).exists() for name in needed)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error, without the name of its kind where a person is meant."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"
