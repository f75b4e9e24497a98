"""Read a study folder: run folders and sweep plans, whatever state a kill has left them in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gda.errors import UserError
from gda.report.records import Cell, Fault, Figures, Method, Run, Study, finite

RUN_FORMAT = 1
STATES = ("running", "done", "failed", "interrupted")


class _Unreadable(Exception):
    """A file is missing, torn, or not what its name promises; the message says which."""


def read_study(folder: Path) -> Study:
    """Read every run folder and every sweep plan of a study.

    Never fails on what a run left behind: a folder that cannot be used becomes a fault.

    Args:
        folder: ``RUNS/STUDY``.

    Returns:
        The study, runs ordered by group and seed, cells by plan.
    """
    faults: list[Fault] = []
    runs = _read_runs(folder, faults)
    cells = _read_plans(folder, faults, runs)
    return Study(folder.resolve().name, folder, tuple(runs), tuple(cells), tuple(faults))


def read_run(folder: Path) -> tuple[Run, dict[str, Any]]:
    """Read one run folder.

    Args:
        folder: ``RUNS/STUDY/NAME-GROUP/seedK``.

    Returns:
        The run, and ``run.json`` as it stands.

    Raises:
        UserError: the folder holds no run that can be read.
    """
    try:
        return _read_run(folder, "/".join(folder.parts[-2:]), []), _read_json(folder / "run.json")
    except _Unreadable as reason:
        raise UserError(f"{folder} is no run folder that can be read: {reason}.") from None


def is_study(folder: Path) -> bool:
    """Say whether a folder holds runs or sweep plans."""
    patterns = ("*/seed*/run.json", "sweeps/*/plan.json")
    return folder.is_dir() and any(next(folder.glob(pattern), None) for pattern in patterns)


def _read_runs(folder: Path, faults: list[Fault]) -> list[Run]:
    found: dict[tuple[str, int], Run] = {}
    for path in sorted(folder.glob("*/seed*")):
        if not path.is_dir():
            continue
        name = path.relative_to(folder).as_posix()
        try:
            run = _read_run(path, name, faults)
        except _Unreadable as reason:
            faults.append(Fault(name, str(reason)))
            continue
        key = (run.method.group, run.seed)
        other = found.get(key)
        if other is not None:
            # A copied folder must not count as a second seed. Keep the finished, then the newer one.
            kept, dropped = sorted((other, run), key=lambda r: (r.finished, r.created), reverse=True)
            faults.append(Fault(dropped.folder, f"same group and seed as {kept.folder}; ignored"))
            run = kept
        found[key] = run
    return [found[key] for key in sorted(found)]


def _read_run(path: Path, name: str, faults: list[Fault]) -> Run:
    facts = _read_json(path / "run.json")
    if facts.get("format") != RUN_FORMAT:
        raise _Unreadable(f"run.json has format {facts.get('format')!r}; this report reads {RUN_FORMAT}")
    method = _method(facts, "run.json")
    seed = _seed(facts, "run.json")
    try:
        status = _read_json(path / "status.json")
    except _Unreadable as reason:
        faults.append(Fault(name, f"{reason}; counted as unfinished"))
        status = {}
    state = status.get("state")
    if status and state not in STATES:
        faults.append(Fault(name, f"status.json has unknown state {state!r}; counted as unfinished"))
    result = _mapping(status.get("result"))
    curve = _read_curve(path / "metrics.jsonl", name, faults)
    best = result.get("best")
    git, teacher_run = facts.get("git"), _mapping(facts.get("teacher_run"))
    last_written = max(curve, default=None)
    epoch = status.get("epoch")
    return Run(
        method=method,
        seed=seed,
        folder=name,
        path=path,
        created=str(facts.get("created") or ""),
        state=str(state) if state in STATES else "unknown",
        epoch=epoch if isinstance(epoch, int) else last_written,
        epochs=status["epochs"] if isinstance(status.get("epochs"), int) else None,
        updated=str(status.get("updated") or ""),
        error=_first_line(status.get("error")),
        last=_figures(result.get("last"), curve),
        best=_figures(best, curve) if isinstance(best, Mapping) else None,
        oracle=finite(result.get("test_top1_oracle")),
        oracle_epoch=_whole(result.get("oracle_epoch")),
        curve=curve,
        selection=str(facts.get("selection") or "none"),
        teacher_seed=_whole(teacher_run.get("seed")),
        teacher_identity=_text(facts.get("teacher_identity")),
        commit=_text(git.get("commit") or git.get("sha")) if isinstance(git, Mapping) else _text(git),
        uncommitted=isinstance(git, Mapping) and git.get("dirty") is True,
        torch_version=_text(_mapping(facts.get("versions")).get("torch")),
    )


def _read_curve(path: Path, name: str, faults: list[Fault]) -> dict[int, Figures]:
    """Read metrics.jsonl. An epoch written twice (resumed after a kill) counts as last written."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return {}  # a run that has not finished an epoch has none
    curve: dict[int, Figures] = {}
    broken = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            # The last line may be torn by a kill, which is no fault; elsewhere it is worth a word.
            broken += number < len(lines)
            continue
        epoch = _whole(row.get("epoch")) if isinstance(row, Mapping) else None
        if epoch is None:
            broken += 1
            continue
        curve[epoch] = _numbers(row)
    if broken:
        faults.append(Fault(name, f"metrics.jsonl: {broken} unreadable line(s) ignored"))
    return dict(sorted(curve.items()))


def _read_plans(folder: Path, faults: list[Fault], runs: list[Run]) -> list[Cell]:
    cells: dict[tuple[str, int], Cell] = {}
    for path in sorted(folder.glob("sweeps/*/plan.json")):
        name = path.relative_to(folder).as_posix()
        try:
            planned = _read_json(path).get("cells")
            if not isinstance(planned, list):
                raise _Unreadable("has no list of cells")
            for facts in planned:
                if not isinstance(facts, Mapping):
                    raise _Unreadable("has a cell that is not an object")
                task = facts.get("task") or _task_of(facts, runs)
                method = _method({**facts, "task": task}, "cell")
                seed = _seed(facts, "cell")
                cells[method.group, seed] = Cell(method, seed, str(facts.get("folder") or ""))
        except _Unreadable as reason:
            faults.append(Fault(name, str(reason)))
    return list(cells.values())


def _task_of(cell: Mapping[str, Any], runs: list[Run]) -> str:
    """Guess the task of a planned cell, which does not state it, from its nearest run."""
    for keys in (("group",), ("vanilla_group", "pair"), ("dataset", "recipe", "pair"), ("dataset", "recipe")):
        tasks = {
            run.method.task for run in runs if all(getattr(run.method, key) == cell.get(key) for key in keys)
        }
        if len(tasks) == 1:
            return tasks.pop()
    return "classification"


def _method(facts: Mapping[str, Any], where: str) -> Method:
    required = ("group", "label", "dataset", "recipe", "task", "student")
    absent = [key for key in required if not isinstance(facts.get(key), str) or not facts[key]]
    if absent:
        raise _Unreadable(f"{where} lacks {', '.join(absent)}")
    teacher, student = _text(facts.get("teacher")), facts["student"]
    return Method(
        group=facts["group"],
        label=facts["label"],
        distiller=str(facts.get("distiller") or ""),
        alignment=str(facts.get("alignment") or "none"),
        ground_truth=str(facts.get("ground_truth") or "labels"),
        dataset=facts["dataset"],
        recipe=facts["recipe"],
        task=facts["task"],
        teacher=teacher,
        student=student,
        pair=_text(facts.get("pair")) or (f"{teacher} -> {student}" if teacher else student),
        twin_group=_text(facts.get("twin_group")),
        vanilla_group=_text(facts.get("vanilla_group")),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _Unreadable(f"no {path.name}") from None
    except OSError as error:
        raise _Unreadable(f"{path.name} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):  # bad UTF-8 is a ValueError too
        raise _Unreadable(f"{path.name} is not valid JSON") from None
    if not isinstance(content, dict):
        raise _Unreadable(f"{path.name} is not a JSON object")
    return content


def _figures(row: object, curve: Mapping[int, Figures]) -> Figures:
    """Return a result row, completed by the metrics line of its epoch."""
    if not isinstance(row, Mapping):
        return {}
    numbers = _numbers(row)
    return {**curve.get(int(numbers.get("epoch", -1)), {}), **numbers}


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {str(key): number for key, value in row.items() if (number := finite(value)) is not None}


def _seed(facts: Mapping[str, Any], where: str) -> int:
    seed = _whole(facts.get("seed"))
    if seed is None:
        raise _Unreadable(f"{where} lacks seed")
    return seed


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _first_line(value: object) -> str | None:
    return next((line.strip() for line in str(value).splitlines() if line.strip()), None) if value else None
