"""What must be read with a table: what its figures mean, and what is missing from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gda.report.aggregate import Row, Table
from gda.report.column import Column, explained
from gda.report.figures import oracle_figure, spoken_text
from gda.report.published import published_line
from gda.report.records import MINIMUM_SEEDS, Run
from gda.report.wording import number, seed_list


def notes(table: Table, columns: Sequence[Column[Row]]) -> list[str]:
    """Write the notes of a table, one sentence or two each, as plain text.

    Args:
        table: the table.
        columns: those that are shown.
    """
    lines = [*_teacher(table), *_encoder(table), *_meaning(table), *explained(columns), *_few_seeds(table)]
    for row in table.rows:
        lines += _incomplete(row)
    lines += [*_settings(table), *_figures(table), *_origins(table)]
    published = published_line(table.dataset, table.recipe, table.pair)
    return [*lines, published] if published else lines


def _teacher(table: Table) -> list[str]:
    runs = [run for row in table.rows for run in row.runs if run.method.pair == table.pair]
    lines = []
    for teacher in sorted({run.method.teacher for run in runs if run.method.teacher}):
        own = [run.trained for run in runs if run.method.teacher == teacher and run.trained is not None]
        if not own:
            continue  # tests of weights from elsewhere: nothing is known of their teacher
        figures = sorted({figure for run in own if (figure := _of_teacher(run)) is not None})
        text = spoken_text(own[0])
        where = " in the tested runs" if table.is_test else ""
        if not figures:
            lines.append(f"Teacher {teacher}: its own test accuracy was not recorded.")
        elif len(figures) == 1:
            lines.append(f"Teacher {teacher}: test {text} {number(figures[0])} %{where}.")
        else:
            lines.append(
                f"Teacher {teacher}: test {text} from {number(figures[0])} to {number(figures[-1])} %"
                f"{where}: the runs do not all have the same teacher weights."
            )
        seeds = {run.teacher_seed for run in own if run.teacher_seed is not None}
        if len(seeds) == 1 and len(figures) < 2:
            lines[-1] += (
                f" All runs share one teacher run ({seed_list(seeds)}): "
                f"the spread does not cover the teacher's."
            )
    return lines


def _of_teacher(run: Run) -> float | None:
    return run.curve.get(0, {}).get(f"teacher_{run.test_figure}")


def _encoder(table: Table) -> list[str]:
    trained = [run.trained for row in table.rows for run in row.runs]
    found = {None if run is None else run.encoder_run for run in trained}
    origins = found - {None}
    seeds = {key[1] for key in origins if key is not None}
    if len(seeds) != 1 or None in found:
        return []
    what = "one encoder run" if len(origins) == 1 else "encoder runs of one seed"
    return [
        f"All runs start from {what} ({seed_list(seeds)}): the spread does not cover the encoder's training."
    ]


def _meaning(table: Table) -> list[str]:
    done = [run for row in table.rows for run in row.done]
    if not done:
        return ["No finished run yet: there is nothing to compare."]
    text = " or ".join(dict.fromkeys(spoken_text(run) for run in done))
    when = "" if table.is_test else " after the last epoch"
    lines = [
        f"{table.heading}: test {text} in percent{when}, mean ± unbiased standard deviation over n seeds."
    ]
    if table.is_few_shot:
        where = "below, run by run" if table.is_test else "in each run's own report.md"
        lines[0] += (
            f" The runs of a row share their episodes: ± does not cover the draw of episodes; "
            f"intervals over episodes stand {where}."
        )
    if any(row.best.n for row in table.rows):
        lines.append(
            f"best: test {text} at the epoch with the best validation figure; the test set selects nothing."
        )
    without = [run for run in done if oracle_figure(run) is not None]
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
    return sum(run.test_figure in figures for epoch, figures in run.curve.items() if epoch > 0)


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
    done = "tested" if table.is_test else "trained"
    return [
        f"The rows were {done} under {len(baselines)} settings, each with its own vanilla baseline: compare "
        f"the differences to vanilla, not the means, across settings."
    ]


def _figures(table: Table) -> list[str]:
    if len(table.figure_texts) < 2:
        return []
    return [
        f"The rows are judged by different figures ({'; '.join(table.figure_texts)}): do not compare their "
        f"means."
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
