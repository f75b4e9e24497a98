"""Why a run or a job failed, from the logs that they left."""

import re
from datetime import datetime
from pathlib import Path

_TAIL_BYTES = 65536
_TAIL_LINES = 30
_TRACEBACK = "Traceback (most recent call last):"
_RECORD = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3} ")
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# torch and srun put the number of the process before each line.
_RANK = re.compile(r"^(?:\[rank\d+\]:|\d+:) ?")
_NOISE = re.compile(r"^(?:submitit (?:INFO|WARNING|ERROR) |srun: |slurmstepd: |\{)")
_COMPLAINT = re.compile(
    r"error|exception|fault|abort|kill|denied|cannot|can't|could not|no such|not found|out of memory",
    re.IGNORECASE,
)


def run_traceback(folder: Path, since: float | None = None) -> str | None:
    """Returns the last traceback in a run's own log.

    Args:
        folder: The run folder.
        since: Seconds since 1970: older tracebacks, of earlier attempts, do not count.
    """
    records: list[list[str]] = []
    for line in _tail(folder / "run.log").splitlines():
        if _RECORD.match(line) or not records:
            records.append([])
        records[-1].append(line)
    for record in reversed(records):
        if any(_TRACEBACK in line for line in record):
            return "\n".join(record).rstrip() if since is None or _written(record[0]) >= since - 1 else None
    return None


def last_error(text: str) -> str | None:
    """Returns the line in which the last traceback of a text ends: the error."""
    lines = [_RANK.sub("", line) for line in text.splitlines()]
    starts = [number for number, line in enumerate(lines) if _TRACEBACK in line]
    if not starts:
        return None
    after = lines[starts[-1] + 1 :]
    return next((line.strip() for line in after if line.strip() and not line[0].isspace()), None)


def job_error(log: str, began: bool) -> str | None:
    """Returns the line of a job's output that says best why it failed.

    Args:
        log: Path of the output; the errors may stand in a file beside it that ends in ``.err``.
        began: Whether the run had begun. If so, its output is no error just because it is the last.

    Returns:
        The error of the last traceback, else the last line that complains, else what SLURM said; None
        where there is nothing of the kind.
    """
    texts = [_tail(path) for path in _outputs(log)]
    for text in texts:
        error = last_error(text)
        if error:
            return error
    lines = [line.strip() for text in reversed(texts) for line in text.splitlines() if line.strip()]
    said = [line for line in lines if not _NOISE.match(line)]
    complaints = [line for line in said if _COMPLAINT.search(line)]
    noise = [line for line in lines if _NOISE.match(line) and "error:" in line]
    choices = complaints or ([] if began else said) or noise
    return choices[-1] if choices else None


def job_tail(log: str) -> str | None:
    """Returns the last lines of a job's output, None where there is none.

    Args:
        log: Path of the output; the errors may stand in a file beside it that ends in ``.err``.
    """
    for path in _outputs(log):
        lines = _tail(path).rstrip().splitlines()
        if lines:
            return "\n".join(lines[-_TAIL_LINES:])
    return None


def _outputs(log: str) -> list[Path]:
    """Returns the files with a job's output, the one with its errors first."""
    if not log:
        return []
    path = Path(log)
    return list(dict.fromkeys((path.with_suffix(".err"), path)))


def _tail(path: Path) -> str:
    """Reads the end of a file, from the start of a line; empty where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - _TAIL_BYTES, 0))
            data = file.read()
    except OSError:
        return ""
    if size > _TAIL_BYTES:
        data = data.partition(b"\n")[2]
    return _COLOURS.sub("", data.decode(errors="replace"))


def _written(line: str) -> float:
    """Returns when a line of a run's log was written, in seconds since 1970; logs tell local time."""
    match = _RECORD.match(line)
    return datetime.fromisoformat(match[1]).timestamp() if match else 0.0
