"""Read a study folder: run folders and sweep plans, whatever state a kill has left them in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gda.errors import UserError
from gda.report.curve import read_curve
from gda.report.episodes import read_episodes
from gda.report.fields import Unreadable, first_line, mapping, numbers, read_json, text, whole
from gda.report.records import (
    TOP1,
    TOP1_TEXT,
    Cell,
    EpisodeShares,
    Fault,
    Figures,
    Method,
    Run,
    RunKey,
    Study,
    finite,
)

RUN_FORMAT = 1
STATES = ("running", "done", "failed", "interrupted", "preempted")


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
        return _read_run(folder, "/".join(folder.parts[-2:]), []), read_json(folder / "run.json")
    except Unreadable as reason:
        raise UserError(f"{folder} is no run folder that can be read: {reason}.") from None


def is_study(folder: Path) -> bool:
    """Say whether a folder holds runs or sweep plans."""
    patterns = ("*/seed*/run.json", "sweeps/*/plan.json")
    return folder.is_dir() and any(next(folder.glob(pattern), None) for pattern in patterns)


def _read_runs(folder: Path, faults: list[Fault]) -> list[Run]:
    found: dict[RunKey, Run] = {}
    for path in sorted(folder.glob("*/seed*")):
        if not path.is_dir():
            continue
        name = path.relative_to(folder).as_posix()
        try:
            run = _read_run(path, name, faults)
        except Unreadable as reason:
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
    # What a test says of training, such as where its encoder came from, the tested run knows.
    return [
        replace(run, tested=found.get(run.encoder_run) if run.is_test and run.encoder_run else None)
        for run in (found[key] for key in sorted(found))
    ]


def _read_run(path: Path, name: str, faults: list[Fault]) -> Run:
    facts = read_json(path / "run.json")
    if facts.get("format") != RUN_FORMAT:
        raise Unreadable(f"run.json has format {facts.get('format')!r}; this report reads {RUN_FORMAT}")
    method = _method(facts, "run.json")
    seed = _seed(facts, "run.json")
    try:
        status = read_json(path / "status.json")
    except Unreadable as reason:
        faults.append(Fault(name, f"{reason}; counted as unfinished"))
        status = {}
    state = status.get("state")
    if status and state not in STATES:
        faults.append(Fault(name, f"status.json has unknown state {state!r}; counted as unfinished"))
    result = mapping(status.get("result"))
    curve = read_curve(path / "metrics.jsonl", name, faults)
    best = result.get("best")
    git, teacher_run = facts.get("git"), mapping(facts.get("teacher_run"))
    figure = text(facts.get("figure")) or TOP1
    last_written = max(curve, default=None)
    epoch = status.get("epoch")
    run = Run(
        method=method,
        seed=seed,
        folder=name,
        path=path,
        created=str(facts.get("created") or ""),
        figure=figure,
        figure_text=text(facts.get("figure_text")) or (TOP1_TEXT if figure == TOP1 else figure),
        state=str(state) if state in STATES else "unknown",
        epoch=epoch if isinstance(epoch, int) else last_written,
        epochs=status["epochs"] if isinstance(status.get("epochs"), int) else None,
        updated=str(status.get("updated") or ""),
        error=first_line(status.get("error")),
        last=_figures(result.get("last"), curve),
        best=_figures(best, curve) if isinstance(best, Mapping) else None,
        oracle=finite(result.get(f"test_{figure}_oracle")),
        oracle_epoch=whole(result.get("oracle_epoch")),
        curve=curve,
        selection=str(facts.get("selection") or "none"),
        teacher_seed=whole(teacher_run.get("seed")),
        teacher_identity=text(facts.get("teacher_identity")),
        encoder_run=_run_key(facts.get("encoder_run")),
        commit=text(git.get("commit") or git.get("sha")) if isinstance(git, Mapping) else text(git),
        uncommitted=isinstance(git, Mapping) and git.get("dirty") is True,
        torch_version=text(mapping(facts.get("versions")).get("torch")),
    )
    return replace(run, episodes=_episodes(run, faults)) if run.is_test and run.finished else run


def _episodes(run: Run, faults: list[Fault]) -> Mapping[str, EpisodeShares]:
    try:
        return read_episodes(run)
    except Unreadable as reason:
        faults.append(Fault(run.folder, f"{reason}; not compared on its episodes"))
        return {}


def _read_plans(folder: Path, faults: list[Fault], runs: list[Run]) -> list[Cell]:
    cells: dict[tuple[str, int], Cell] = {}
    for path in sorted(folder.glob("sweeps/*/plan.json")):
        name = path.relative_to(folder).as_posix()
        try:
            planned = read_json(path).get("cells")
            if not isinstance(planned, list):
                raise Unreadable("has no list of cells")
            for facts in planned:
                if not isinstance(facts, Mapping):
                    raise Unreadable("has a cell that is not an object")
                task = facts.get("task") or _task_of(facts, runs)
                method = _method({**facts, "task": task}, "cell")
                seed = _seed(facts, "cell")
                cells[method.group, seed] = Cell(method, seed, str(facts.get("folder") or ""))
        except Unreadable as reason:
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
        raise Unreadable(f"{where} lacks {', '.join(absent)}")
    teacher, student = text(facts.get("teacher")), facts["student"]
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
        pair=text(facts.get("pair")) or (f"{teacher} -> {student}" if teacher else student),
        twin_group=text(facts.get("twin_group")),
        vanilla_group=text(facts.get("vanilla_group")),
    )


def _figures(row: object, curve: Mapping[int, Figures]) -> Figures:
    """Return a result row, completed by the metrics line of its epoch."""
    if not isinstance(row, Mapping):
        return {}
    found = numbers(row)
    return {**curve.get(int(found.get("epoch", -1)), {}), **found}


def _seed(facts: Mapping[str, Any], where: str) -> int:
    seed = whole(facts.get("seed"))
    if seed is None:
        raise Unreadable(f"{where} lacks seed")
    return seed


def _run_key(value: object) -> RunKey | None:
    """Return group and seed of a run that another one names."""
    group, seed = text(mapping(value).get("group")), whole(mapping(value).get("seed"))
    return None if group is None or seed is None else (group, seed)
