"""What must be read with a table: what its figures mean, and what is missing from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gda.report.aggregate import Row, Table, oracle_top1
from gda.report.published import published_line
from gda.report.records import MINIMUM_SEEDS, Run
from gda.report.wording import number, seed_list


def notes(table: Table) -> list[str]:
    """Write the notes of a table, one sentence or two each, as plain text."""
    lines = [*_teacher(table), *_meaning(table), *_few_seeds(table)]
    for row in table.rows:
        lines += _incomplete(row)
    lines += [*_settings(table), *_origins(table)]
    published = published_line(table.dataset, table.recipe, table.pair)
    return [*lines, published] if published else lines


def _teacher(table: Table) -> list[str]:
    runs = [run for row in table.rows for run in row.runs if run.method.pair == table.pair]
    lines = []
    for teacher in sorted({run.method.teacher for run in runs if run.method.teacher}):
        own = [run for run in runs if run.method.teacher == teacher]
        figures = sorted(
            {run.curve[0]["teacher_test_top1"] for run in own if "teacher_test_top1" in run.curve.get(0, {})}
        )
        if not figures:
            lines.append(f"Teacher {teacher}: its own test accuracy was not recorded.")
        elif len(figures) == 1:
            lines.append(f"Teacher {teacher}: test top-1 {number(figures[0])} %.")
        else:
            lines.append(
                f"Teacher {teacher}: test top-1 from {number(figures[0])} to {number(figures[-1])} %: "
                f"the runs do not all have the same teacher weights."
            )
        seeds = {run.teacher_seed for run in own if run.teacher_seed is not None}
        if len(seeds) == 1 and len(figures) < 2:
            lines[-1] += (
                f" All runs share one teacher run ({seed_list(seeds)}): "
                f"the spread does not cover the teacher's."
            )
    return lines


def _meaning(table: Table) -> list[str]:
    done = [run for row in table.rows for run in row.done]
    if not done:
        return ["No finished run yet: there is nothing to compare."]
    lines = [
        "last: test top-1 in percent after the last epoch, mean ± unbiased standard deviation over n seeds."
    ]
    if any(row.best.n for row in table.rows):
        lines.append(
            "best: test top-1 at the epoch with the best validation figure; the test set selects nothing."
        )
    without = [run for run in done if oracle_top1(run) is not None]
    if without:
        figures = sorted({_tested_epochs(run) for run in without})
        count = str(figures[0]) if len(figures) == 1 else f"{figures[0]} to {figures[-1]}"
        lines.append(
            f"oracle: the highest of the {count} test figures of each run. It was selected on the test set "
            f"(these runs hold out no validation images) and is too high as an estimate: not a result."
        )
    if any(value is not None and value.n for row in table.rows for value in row.difference.values()):
        lines.append(
            "Differences are paired over the seeds that both rows have finished, with a 95% Student-t "
            "interval. †: this interval excludes 0; each interval stands alone, without correction for the "
            "number of rows."
        )
    return lines


def _tested_epochs(run: Run) -> int:
    return sum("test_top1" in figures for epoch, figures in run.curve.items() if epoch > 0)


def _few_seeds(table: Table) -> list[str]:
    few = [f"{row.label} (n={len(row.done)})" for row in table.rows if 0 < len(row.done) < MINIMUM_SEEDS]
    return [f"Fewer than three seeds, not a result: {'; '.join(few)}."] if few else []


def _incomplete(row: Row) -> list[str]:
    parts = [f"seed {run.seed} failed: {run.error or 'no error recorded'}" for run in row.failed]
    parts += [f"seed {run.seed} {run.progress}" for run in row.unfinished]
    if row.planned:
        parts.append(f"{seed_list(row.planned)} planned, no run found")
    if row.absent:
        parts.append(f"{seed_list(row.absent)} missing here but present in other rows")
    return [f"{row.label}: {'; '.join(parts)}."] if parts else []


def _settings(table: Table) -> list[str]:
    baselines = {row.method.vanilla_group for row in table.rows if row.method.vanilla_group is not None}
    if len(baselines) < 2:
        return []
    return [
        f"The rows were trained under {len(baselines)} settings, each with its own vanilla baseline: compare "
        f"the differences to vanilla, not the means, across settings."
    ]


def _origins(table: Table) -> list[str]:
    runs = [run for row in table.rows for run in row.runs]
    lines = [
        *_several("git commits", runs, lambda run: run.commit and run.commit[:10]),
        *_several("torch versions", runs, lambda run: run.torch_version),
    ]
    changed = [run for run in runs if run.uncommitted]
    if changed:
        lines.append(f"{len(changed)} of {len(runs)} runs come from a working tree with uncommitted changes.")
    return lines


def _several(what: str, runs: Iterable[Run], value: Callable[[Run], str | None]) -> list[str]:
    counts: dict[str, int] = {}
    for run in runs:
        if text := value(run):
            counts[text] = counts.get(text, 0) + 1
    if len(counts) < 2:
        return []
    listed = ", ".join(f"{text} ({count} of the runs)" for text, count in sorted(counts.items()))
    return [f"The runs come from different {what}: {listed}."]
