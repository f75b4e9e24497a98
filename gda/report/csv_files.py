"""The figures as CSV at full precision: one line per method, and one line per run."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from gda.report.aggregate import Row, Table
from gda.report.figures import best_figure, is_few_shot, last_figure
from gda.report.records import TOP1, Cell, Run, Study
from gda.report.spread import Difference, Summary

Value = str | int | float | None

SUMMARIES = ("last", "best", "oracle", "agreement", "ece", "teacher_kl")


def table_csv(tables: Sequence[Table]) -> str:
    """Write one line per method and table; what is unknown is left empty.

    Tables of few-shot tasks add columns: ``figure``, which names what `last`, `best` and `oracle` are, and
    the figures beside it, for example ``last_5shot_mean``.
    """
    further = list(dict.fromkeys(name for table in tables for row in table.rows for name in row.beside))
    header = _method_header(further, any(table.is_few_shot for table in tables))
    return _csv([_method_line(table, row, header) for table in tables for row in table.rows], header)


def runs_csv(study: Study) -> str:
    """Write one line per run, and one per planned run that has no folder.

    Figures of different tasks have columns of their own: ``last_test_top1``, ``last_test_1shot``.
    """
    lines: list[dict[str, Value]] = [_run_line(run) for run in study.runs]
    there = {(run.method.group, run.seed) for run in study.runs}
    for cell in study.cells:
        if (cell.method.group, cell.seed) not in there:
            lines.append({**_identity(cell), "state": "missing"})
    found = {run.figure for run in study.runs}
    figures = sorted(found, key=lambda figure: (figure != TOP1, figure)) or [TOP1]
    further = sorted({name for run in study.runs for name in _further(run)})
    header = [
        "task", "dataset", "recipe", "pair", "label", "group", "seed", "state", "epoch", "epochs",
        "selection", *(f"{when}_test_{figure}" for figure in figures for when in ("last", "best")),
        "best_epoch", *(f"oracle_test_{figure}" for figure in figures), "oracle_epoch", *further,
        "error", "folder",
    ]  # fmt: skip
    order = ("task", "dataset", "recipe", "pair", "label", "group")
    return _csv(sorted(lines, key=lambda line: ([str(line[key]) for key in order], line["seed"])), header)


def _run_line(run: Run) -> dict[str, Value]:
    best_epoch = run.best.get("epoch") if run.best else None
    return {
        **_identity(run),
        "state": run.state,
        "epoch": run.epoch,
        "epochs": run.epochs,
        "selection": run.selection,
        f"last_{run.test_figure}": last_figure(run),
        f"best_{run.test_figure}": best_figure(run),
        "best_epoch": None if best_epoch is None else int(best_epoch),
        f"oracle_{run.test_figure}": None if run.is_test else run.oracle,
        "oracle_epoch": None if run.is_test else run.oracle_epoch,
        **_further(run),
        "error": run.error,
    }


def _further(run: Run) -> dict[str, float]:
    """Return what a few-shot run measured on test images beside its figure, intervals too."""
    if not (is_few_shot(run) and run.finished):
        return {}
    names = [name for name in run.last if name.startswith(("test_", "base_test_"))]
    return {f"last_{name}": run.last[name] for name in names if name != run.test_figure}


def _identity(item: Run | Cell) -> dict[str, Value]:
    method = item.method
    return {
        "task": method.task,
        "dataset": method.dataset,
        "recipe": method.recipe,
        "pair": method.pair,
        "label": method.label,
        "group": method.group,
        "seed": item.seed,
        "folder": item.folder,
    }


def _method_header(further: Sequence[str], names_figure: bool) -> list[str]:
    header = [
        "task", "dataset", "recipe", "pair", "method", "group", "distiller", "alignment", "ground_truth",
        "teacher", "student", "n",
    ]  # fmt: skip
    for name in SUMMARIES:
        header += [f"{name}_n", f"{name}_mean", f"{name}_std"]
    for baseline in ("twin", "vanilla"):
        for figure in ("last", "best"):
            header += [f"{figure}_vs_{baseline}_{part}" for part in ("n", "mean", "low", "high")]
    header += ["seeds_done", "seeds_failed", "seeds_unfinished", "seeds_missing"]
    if names_figure:
        header.append("figure")
    for name in further:
        header += [f"{_last(name)}_{part}" for part in ("n", "mean", "std")]
    return header


def _last(name: str) -> str:
    return f"last_{name.replace('test_', '')}"


def _method_line(table: Table, row: Row, header: Sequence[str]) -> dict[str, Value]:
    method = row.method
    line: dict[str, Value] = {
        "task": table.task,
        "dataset": table.dataset,
        "recipe": table.recipe,
        "pair": table.pair,
        "method": row.label,
        "group": method.group,
        "distiller": method.distiller,
        "alignment": method.alignment,
        "ground_truth": method.ground_truth,
        "teacher": method.teacher,
        "student": method.student,
        "n": len(row.done),
        "seeds_done": _seeds(row.done),
        "seeds_failed": _seeds(row.failed),
        "seeds_unfinished": _seeds(row.unfinished),
        "seeds_missing": " ".join(map(str, sorted({*row.planned, *row.absent}))),
    }
    for name in SUMMARIES:
        summary: Summary = getattr(row, name)
        line |= _summary_fields(name, summary)
    for name, summary in row.beside.items():
        line |= _summary_fields(_last(name), summary)
    if "figure" in header:
        line["figure"] = " ".join(sorted({run.figure for run in row.runs}))
    for (baseline, figure), value in row.difference.items():
        line |= _difference_fields(f"{figure}_vs_{baseline}", value)
    return line


def _summary_fields(name: str, value: Summary) -> dict[str, Value]:
    return {f"{name}_n": value.n, f"{name}_mean": value.mean, f"{name}_std": value.std}


def _difference_fields(name: str, value: Difference | None) -> dict[str, Value]:
    if value is None:
        return {}
    return {
        f"{name}_n": value.n,
        f"{name}_mean": value.mean,
        f"{name}_low": value.low,
        f"{name}_high": value.high,
    }


def _seeds(runs: Sequence[Run]) -> str:
    return " ".join(str(run.seed) for run in runs)


def _csv(lines: Sequence[dict[str, Value]], header: Sequence[str]) -> str:
    buffer = io.StringIO()
    # Floats are written with repr, so that reading them back gives the same number.
    writer = csv.DictWriter(buffer, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()
