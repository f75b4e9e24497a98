"""The figures of one few-shot run as tables, for the page of that run."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gda.report.few_shot_columns import AUC_NOTE, BASE_NOTE, PROBE_NOTE
from gda.report.figures import BASE_TOP1, IMAGE_FIGURES, ShotFigure, shot_figures, spoken_text
from gda.report.records import Figures, Run
from gda.report.wording import IMAGE_NOTE, UNKNOWN, mean_and_half, number

Lines = list[Sequence[str]]
"""Rows of a table, its headings first."""

_SPLIT_SHOT = re.compile(r"(?:teacher_)?(?:validation|test)_(\d+)shot")
_ON_IMAGES = re.compile(r"(?:teacher_)?(?:base_)?(?:validation|test)_(?:loss|ece|agreement|teacher_kl)")


def few_shot_tables(run: Run) -> list[tuple[str, Lines]]:
    """Tabulate what a few-shot run has measured: heading of each table, and its lines."""
    tables = [("Episodes", _test(run) if run.is_test else _episodes(run))]
    if base := _base(run):
        tables.append(("Base classes", base))
    if temperatures := _temperatures(run):
        tables.append(("Learned temperature", temperatures))
    return tables


def few_shot_notes(run: Run) -> list[str]:
    """Say what the figures are."""
    lines = [
        f"The run is judged by its {spoken_text(run)}, in percent. "
        "± is half the width of the 95% Student-t interval over the episodes; it does not cover the seed."
    ]
    readings = {figure.reading for figure in shot_figures(run.last)} if run.is_test else set()
    if any(name.endswith("_batch_interval") for name in run.last):
        lines.append("± over batches: the same interval over the means of batches of episodes, as published.")
    lines += [note for reading, note in (("auc", AUC_NOTE), ("probe", PROBE_NOTE)) if reading in readings]
    if run.is_test:
        return lines + ([BASE_NOTE] if BASE_TOP1 in run.last else [])
    if run.best is not None:
        lines.append("The best epoch was chosen on validation episodes; the test episodes selected nothing.")
    else:
        lines.append("There are no validation episodes, so no epoch was chosen: the last one is the result.")
        if run.oracle is not None:
            lines.append(
                f"Oracle: {number(run.oracle)} % at epoch {run.oracle_epoch}, the highest test figure of all "
                "epochs. It was selected on the test set and is too high as an estimate: not a result."
            )
    if any(_ON_IMAGES.fullmatch(name) for row in _rows(run).values() for name in row):
        lines.append(f"{IMAGE_NOTE} On episodes these are of the queries, with the first number of shots.")
    return lines


def _test(run: Run) -> Lines:
    """One line for each number of shots."""
    shots = sorted({figure.shot for figure in shot_figures(run.last)})
    return [
        ("shots", "accuracy %", "± over batches", "AUC %", "probe %", "episodes"),
        *(
            (
                str(shot),
                _with_interval(run.last, ShotFigure("", shot).key),
                _number(run.last, f"{ShotFigure('', shot).key}_batch_interval", 2),
                _with_interval(run.last, ShotFigure("auc", shot).key),
                _with_interval(run.last, ShotFigure("probe", shot).key),
                _count(run, ShotFigure("", shot).key),
            )
            for shot in shots
        ),
    ]


def _episodes(run: Run) -> Lines:
    """One line for each evaluated state and split; shots, and the fidelity that a meta-learner has."""
    rows = _rows(run)
    shots = sorted(
        {int(found[1]) for row in rows.values() for name in row if (found := _SPLIT_SHOT.fullmatch(name))}
    )
    readings = [
        reading for reading in IMAGE_FIGURES if any(_has_reading(row, reading[0]) for row in rows.values())
    ]
    return [
        ("", *(f"{shot}-shot %" for shot in shots), *(heading for _, heading, _ in readings)),
        *(
            (
                f"{state}, {split}",
                *(_with_interval(row, f"{prefix}{shot}shot") for shot in shots),
                *(_number(row, prefix + key, digits) for key, _, digits in readings),
            )
            for split, state, row, prefix in _states(run, "")
            if any(f"{prefix}{shot}shot" in row for shot in shots)
        ),
    ]


def _base(run: Run) -> Lines:
    """The figures of a classifier on held-out images of the classes that it has learnt."""
    found = [entry for entry in _states(run, "base_") if f"{entry[3]}top1" in entry[2]]
    readings = [
        reading for reading in IMAGE_FIGURES if any(prefix + reading[0] in row for _, _, row, prefix in found)
    ]
    if not found:
        return []
    return [
        ("", *(heading for _, heading, _ in readings)),
        *(
            (f"{state}, {split}", *(_number(row, prefix + key, digits) for key, _, digits in readings))
            for split, state, row, prefix in found
        ),
    ]


def _temperatures(run: Run) -> Lines:
    """The factor of the similarities that a meta-learner has learned."""
    rows = [
        (state, _number(row, "temperature", 4)) for state, row in _rows(run).items() if "temperature" in row
    ]
    return [("", "temperature"), *rows] if rows else []


def _rows(run: Run) -> dict[str, Figures]:
    """The states of a run that have figures: teacher, last and best epoch."""
    if run.is_test:
        return {"tested student": run.last}
    rows = {"teacher": run.curve.get(0, {}), "last epoch": run.last}
    if run.best is not None:
        rows[f"best validation epoch ({run.best.get('epoch', 0):.0f})"] = run.best
    return rows


def _states(run: Run, base: str) -> list[tuple[str, str, Figures, str]]:
    """List (split, state, figures, prefix of their names) as they stand in a table."""
    return [
        (split, state, row, f"{'teacher_' if state == 'teacher' else ''}{base}{split}_")
        for split in ("validation", "test")
        for state, row in _rows(run).items()
    ]


def _has_reading(row: Figures, key: str) -> bool:
    """Say whether a row has a figure such as ``loss`` on episodes, of the student or a teacher."""
    return any(f"{who}{split}_{key}" in row for who in ("", "teacher_") for split in ("validation", "test"))


def _with_interval(row: Figures, key: str) -> str:
    return mean_and_half(row.get(key), row.get(f"{key}_interval"))


def _number(row: Figures, key: str, digits: int) -> str:
    return number(row[key], digits) if key in row else UNKNOWN


def _count(run: Run, key: str) -> str:
    return str(len(run.episodes[key].shares)) if key in run.episodes else UNKNOWN
