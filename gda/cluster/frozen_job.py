"""Frozen jobs: what a job has to make, as it was when it was submitted.

``STUDY/sweeps/<sweep id>/jobs/<n>.json`` holds resolved configs, so that an edit of ``conf/`` does not
change a job that waits in a queue; ``code.json`` beside it holds a hash of every source file that the
job will import, so that an edit of the code is noticed.
"""

import json
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gda.cluster.json_record import Unreadable, read_record
from gda.errors import UserError
from gda.tracking.atomic import write_json_atomic, write_text_atomic

if TYPE_CHECKING:  # at import time it would bring torch with it, which what reads a job can do without
    from gda.cluster.plan import PlannedRun

logger = logging.getLogger("gda")

FORMAT = 1
CODE_FILE = "code.json"
SWEEP_VARIABLE = "GDA_SWEEP"
"""Environment variable that tells a process which sweep its runs belong to: ``STUDY/<sweep id>``."""

_PAIRS = "!pairs"
_SHOWN = 5  # changed files that an error names


@dataclass(frozen=True)
class FrozenRun:
    """One run of a job.

    Attributes:
        folder: Its absolute run folder.
        title: What it is called on the terminal.
        config: Its resolved config.
        is_input: Whether other runs build on it, as on a teacher.
        needed: Checkpoints for which others wait for it; empty for a cell.
        needs: Run folders that must be done before it; they may be in other jobs.
    """

    folder: Path
    title: str
    config: dict[str, Any]
    is_input: bool = False
    needed: tuple[str, ...] = ()
    needs: tuple[Path, ...] = ()


@dataclass(frozen=True)
class FrozenJob:
    """What one job has to make.

    Attributes:
        file: Where it is written down.
        sweep: The sweep that it belongs to, ``STUDY/<sweep id>``.
        runs: In an order in which each stands behind those that it needs.
        side_by_side: How many of them go on at once.
        ranks: Processes of one run.
        max_requeues: How often it may come back after its time was up.
        allow_changed_code: Whether it goes on with code that was changed since it was submitted.
    """

    file: Path
    sweep: str
    runs: tuple[FrozenRun, ...]
    side_by_side: int = 1
    ranks: int = 1
    max_requeues: int = 20
    allow_changed_code: bool = False

    @property
    def sweep_folder(self) -> Path:
        """The sweep folder, which also holds ``plan.json`` and ``code.json``."""
        return self.file.parent.parent


def write_job(
    path: Path,
    runs: "Sequence[PlannedRun]",
    *,
    sweep: str,
    side_by_side: int = 1,
    ranks: int = 1,
    max_requeues: int = 20,
    allow_changed_code: bool = False,
) -> Path:
    """Writes a job down, whole or not at all.

    Args:
        path: ``STUDY/sweeps/<sweep id>/jobs/<n>.json``.
        runs: What it has to make, each run behind those that it needs.
        sweep: ``STUDY/<sweep id>``.
        side_by_side: How many runs go on at once, at least 1.
        ranks: Processes of one run, at least 1.
        max_requeues: How often the job may come back after its time was up.
        allow_changed_code: Whether it goes on with code that was changed in the meantime.

    Returns:
        The file, as an absolute path.

    Raises:
        OSError: The file can't be written.
    """
    path = path.absolute()
    record = {
        "format": FORMAT,
        "sweep": sweep,
        "side_by_side": side_by_side,
        "ranks": ranks,
        "max_requeues": max_requeues,
        "allow_changed_code": allow_changed_code,
        "runs": [
            {
                "folder": str(run.folder),
                "title": run.title,
                "is_input": bool(run.needed),
                "needed": list(run.needed),
                "needs": [str(folder) for folder in run.needs],
                "config": _to_json(run.config),
            }
            for run in runs
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return path


def read_job(path: Path) -> FrozenJob:
    """Reads a job.

    Args:
        path: The file that :func:`write_job` has written.

    Raises:
        UserError: There is no such file here, or it is of another version or damaged.
    """
    path = path.absolute()
    try:
        record = read_record(path)
    except Unreadable as error:
        raise UserError(f"{path} is no job: {error}. Issue the command again.") from None
    if record is None:
        raise UserError(
            f"The job {path} is not there. If the command was issued on another machine, its run folder is "
            "not on a file system that the nodes share: set runs=FOLDER to one that is, then issue it again."
        )
    if record.get("format") != FORMAT:
        raise UserError(
            f"The job {path} has format {record.get('format')!r}, and this version of the code reads "
            f"{FORMAT}: the code was changed after the job was submitted. Issue the command again."
        )
    try:
        runs = tuple(
            FrozenRun(
                folder=Path(run["folder"]),
                title=run["title"],
                config=_from_json(run["config"]),
                is_input=run["is_input"],
                needed=tuple(run["needed"]),
                needs=tuple(Path(folder) for folder in run["needs"]),
            )
            for run in record.pop("runs")
        )
        del record["format"]
        return FrozenJob(file=path, runs=runs, **record)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no job: {error}. Issue the command again.") from None


def freeze_code(sweep_folder: Path, configs: Iterable[Mapping[str, Any]]) -> Path:
    """Writes down the hash of every source file that runs of these configs import.

    Args:
        sweep_folder: ``STUDY/sweeps/<sweep id>``.
        configs: The resolved configs of the sweep's runs.

    Returns:
        The file ``code.json``: ``{"submitted": time, "files": {path: SHA-256}}``.
    """
    from gda.tracking.code_state import code_files, targets_of

    targets = sorted({target for config in configs for target in targets_of(config)})
    path = sweep_folder / CODE_FILE
    content = {"submitted": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "files": code_files(targets)}
    write_json_atomic(path, content)
    return path


def require_same_code(job: FrozenJob) -> None:
    """Keeps a job from running other code than it was submitted with.

    Raises:
        UserError: Source files have changed since then, and the job does not allow it.
    """
    from gda.tracking.code_state import changed_files

    try:
        record = read_record(job.sweep_folder / CODE_FILE)
    except Unreadable as error:
        raise UserError(f"{job.sweep_folder / CODE_FILE}: {error}. Issue the command again.") from None
    changed = [] if record is None else changed_files(record["files"])
    if record is not None and changed:
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        what = (
            f"The code has changed since this was submitted ({record['submitted']}): "
            f"{', '.join(changed[:_SHOWN])}{more}."
        )
        if job.allow_changed_code:
            logger.warning("%s It is allowed to.", what)
            return
        raise UserError(
            f"{what} Issue the command again, which submits what is missing "
            "with the code as it is now, or allow it: cluster.allow_changed_code=true."
        )


def _to_json(value: Any) -> Any:
    """Returns a config's value as JSON holds it without loss: keys may be numbers, numbers infinite."""
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key != _PAIRS for key in value):
            return {key: _to_json(item) for key, item in value.items()}
        return {_PAIRS: [[key, _to_json(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {_PAIRS: str(value)}
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) != {_PAIRS}:
            return {key: _from_json(item) for key, item in value.items()}
        pairs = value[_PAIRS]
        return float(pairs) if isinstance(pairs, str) else {key: _from_json(item) for key, item in pairs}
    return [_from_json(item) for item in value] if isinstance(value, list) else value
