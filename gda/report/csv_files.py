"""The figures as CSV at full precision: one line per method, and one line per run."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from gda.report.aggregate import Row, Table, best_top1, last_top1
from gda.report.records import Cell, Run, Study
from gda.report.spread import Difference, Summary

Value = str | int | float | None

SUMMARIES = ("last", "best", "oracle", "agreement", "ece", "teacher_kl")


def table_csv(tables: Sequence[Table]) -> str:
    """Write one line per method and table; what is unknown is left empty."""
    return _csv([_method_line(table, row) for table in tables for row in table.rows], _method_header())


def runs_csv(study: Study) -> str:
    """Write one line per run, and one per planned run that has no folder."""
    lines: list[dict[str, Value]] = [_run_line(run) for run in study.runs]
    there = {(run.method.group, run.seed) for run in study.runs}
    for cell in study.cells:
        if (cell.method.group, cell.seed) not in there:
            lines.append({**_identity(cell), "state": "missing"})
    header = (
        "task", "dataset", "recipe", "pair", "label", "group", "seed", "state", "epoch", "epochs",
        "selection", "last_test_top1", "best_test_top1", "best_epoch", "oracle_test_top1", "oracle_epoch",
        "error", "folder",
    )  # fmt: skip
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
        "last_test_top1": last_top1(run),
        "best_test_top1": best_top1(run),
        "best_epoch": None if best_epoch is None else int(best_epoch),
        "oracle_test_top1": run.oracle,
        "oracle_epoch": run.oracle_epoch,
        "error": run.error,
    }


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


def _method_header() -> list[str]:
    header = [
        "task", "dataset", "recipe", "pair", "method", "group", "distiller", "alignment", "ground_truth",
        "teacher", "student", "n",
    ]  # fmt: skip
    for name in SUMMARIES:
        header += [f"{name}_n", f"{name}_mean", f"{name}_std"]
    for baseline in ("twin", "vanilla"):
        for figure in ("last", "best"):
            header += [f"{figure}_vs_{baseline}_{part}" for part in ("n", "mean", "low", "high")]
    return [*header, "seeds_done", "seeds_failed", "seeds_unfinished", "seeds_missing"]


def _method_line(table: Table, row: Row) -> dict[str, Value]:
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
        line |= {f"{name}_n": summary.n, f"{name}_mean": summary.mean, f"{name}_std": summary.std}
    for (baseline, figure), value in row.difference.items():
        line |= _difference_fields(f"{figure}_vs_{baseline}", value)
    return line


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
