"""From runs to tables: one row per method over its seeds, one table per honest comparison."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from gda.report.figures import beside, best_figure, fidelity, is_few_shot, last_figure, oracle_figure, spoken
from gda.report.labels import distinct_labels
from gda.report.records import FEW_SHOT_TEST, TOP1_TEXT, Method, Run, Study
from gda.report.spread import Difference, Summary, paired_difference, summarise

TableKey = tuple[str, str, str, str]


@dataclass(frozen=True)
class Row:
    """One method over its seeds. Accuracies and their differences are in percent (points).

    Attributes:
        last: test figure after the last epoch.
        best: test figure at the epoch with the best validation figure; n=0 without validation.
        oracle: highest test figure of the runs without validation: selected on test.
        beside: further figures of few-shot runs after the last epoch, by name: ``test_5shot``.
        difference: (baseline, figure) -> paired difference, baseline in ``twin`` (the same
            with alignment=none) and ``vanilla``, figure in ``last`` and ``best``. None where
            the method is its own baseline.
        planned: seeds that a sweep intended and that have no usable run folder.
        absent: seeds that other rows of the table have and nobody planned here.
    """

    method: Method
    label: str
    done: tuple[Run, ...]
    failed: tuple[Run, ...]
    unfinished: tuple[Run, ...]
    planned: tuple[int, ...]
    absent: tuple[int, ...]
    last: Summary
    best: Summary
    oracle: Summary
    agreement: Summary
    ece: Summary
    teacher_kl: Summary
    beside: Mapping[str, Summary]
    difference: Mapping[tuple[str, str], Difference | None]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs of the method, in whatever state."""
        return self.done + self.failed + self.unfinished


@dataclass(frozen=True)
class Table:
    """Rows that may be compared: one task, data set, recipe and teacher -> student pair."""

    task: str
    dataset: str
    recipe: str
    pair: str
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """For example ``cifar100, recipe crd: resnet56 -> resnet20 (classification)``."""
        return f"{self.dataset}, recipe {self.recipe}: {self.pair} ({self.task})"

    @property
    def is_test(self) -> bool:
        """True where the rows are measured once, and not trained."""
        return self.task == FEW_SHOT_TEST

    @property
    def is_few_shot(self) -> bool:
        """True where runs are judged on episodes."""
        return any(is_few_shot(run) for row in self.rows for run in row.runs)

    @property
    def figure_texts(self) -> tuple[str, ...]:
        """What the runs are judged by, in words; more than one text where settings differ."""
        found = {run.figure_text for row in self.rows for run in row.runs if run.finished}
        return tuple(sorted(found, key=natural_order)) or (TOP1_TEXT,)

    @property
    def figure_text(self) -> str:
        """All of them, for a heading."""
        return " or ".join(self.figure_texts)

    @property
    def heading(self) -> str:
        """Heading of the main figure: ``last``, or ``1-shot`` for a test, which has no epochs."""
        figures = {run.figure for row in self.rows for run in row.runs if run.finished}
        if not self.is_test:
            return "last"
        return spoken(figures.pop()) if len(figures) == 1 else "accuracy"

    @property
    def slug(self) -> str:
        """The title as part of a file name."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.dataset}-{self.recipe}-{self.pair}-{self.task}".lower())

    @property
    def finished(self) -> int:
        """Number of runs with a result."""
        return sum(len(row.done) for row in self.rows)


def aggregate(study: Study) -> tuple[Table, ...]:
    """Build the tables of a study, ordered by task, data set, recipe and pair."""
    methods = {cell.method.group: cell.method for cell in study.cells}
    methods |= {run.method.group: run.method for run in study.runs}
    runs, planned = defaultdict(list), defaultdict(set)
    for run in study.runs:
        runs[run.method.group].append(run)
    for cell in study.cells:
        planned[cell.method.group].add(cell.seed)
    tables = []
    for (task, dataset, recipe, pair), members in sorted(_assign(methods.values()).items()):
        groups = {method.group for method in members}
        labels = distinct_labels(members, [run for group in groups for run in runs[group]])
        seeds = {seed for group in groups for seed in planned[group]}
        seeds |= {run.seed for group in groups for run in runs[group]}
        mine = {group: runs[group] for group in groups}
        guides = {run.teacher_identity for own in mine.values() for run in own if not run.method.is_vanilla}
        rows = [
            _row(method, labels[method.group], mine, planned[method.group], seeds, guides - {None})
            for method in members
        ]
        tables.append(Table(task, dataset, recipe, pair, tuple(_ordered(rows))))
    return tuple(tables)


def _assign(methods: Iterable[Method]) -> dict[TableKey, list[Method]]:
    """Give every method its table; plain training goes to every table of its student."""
    tables: dict[TableKey, list[Method]] = defaultdict(list)
    plain = []
    for method in methods:
        if method.is_vanilla:
            plain.append(method)
        else:
            tables[_key(method)].append(method)
    distilled = {key: tuple(members) for key, members in tables.items()}
    for method in plain:
        # The same student under the same recipe: a pair differs from its vanilla row by the method only.
        same = {
            key: members
            for key, members in distilled.items()
            if key[:3] == _key(method)[:3] and any(other.student == method.student for other in members)
        }
        asked = [key for key, members in same.items() if method.group in {m.vanilla_group for m in members}]
        for key in asked or list(same) or [_key(method)]:
            tables[key].append(method)
    return tables


def _key(method: Method) -> TableKey:
    return method.task, method.dataset, method.recipe, method.pair


def _row(
    method: Method,
    label: str,
    runs: Mapping[str, list[Run]],
    planned: set[int],
    seeds: set[int],
    guides: set[str | None],
) -> Row:
    """Sums up one method.

    Args:
        method: The method.
        label: Its name in this table.
        runs: The runs of all groups of the table.
        planned: Seeds that a sweep intended for it.
        seeds: Seeds of any row of the table.
        guides: Identities of the teachers of the table's other rows. Plain training serves many
            tables; its fidelity counts where it was measured against one of these.
    """
    own = sorted(runs[method.group], key=lambda run: run.seed)
    done = [run for run in own if run.finished]
    failed = [run for run in own if run.state == "failed"]
    there = {run.seed for run in own}
    alike = [run for run in done if not guides or run.teacher_identity in guides]
    names = dict.fromkeys(name for run in done for name in beside(run))
    return Row(
        method=method,
        label=label,
        done=tuple(done),
        failed=tuple(failed),
        unfinished=tuple(run for run in own if run not in done and run not in failed),
        planned=tuple(sorted(planned - there)),
        absent=tuple(sorted(seeds - planned - there)),
        last=summarise(_by_seed(done, last_figure)),
        best=summarise(_by_seed(done, best_figure)),
        oracle=summarise(_by_seed(done, oracle_figure)),
        agreement=summarise(_by_seed(alike, lambda run: fidelity(run, "agreement"))),
        ece=summarise(_by_seed(done, lambda run: fidelity(run, "ece"))),
        teacher_kl=summarise(_by_seed(alike, lambda run: fidelity(run, "teacher_kl"))),
        beside={name: summarise(_by_seed(done, partial(_beside, name=name))) for name in names},
        difference={
            (name, figure): _difference(method.group, group, runs, reader)
            for name, group in (("twin", method.twin_group), ("vanilla", method.vanilla_group))
            for figure, reader in (("last", last_figure), ("best", best_figure))
        },
    )


def _beside(run: Run, name: str) -> float | None:
    return beside(run).get(name)


def _difference(
    group: str,
    baseline: str | None,
    runs: Mapping[str, list[Run]],
    figure: Callable[[Run], float | None],
) -> Difference | None:
    if baseline is None or baseline == group:
        return None
    return paired_difference(_by_seed(runs[group], figure), _by_seed(runs.get(baseline, []), figure))


def _by_seed(runs: Iterable[Run], figure: Callable[[Run], float | None]) -> dict[int, float]:
    values = {run.seed: figure(run) for run in runs if run.finished}
    return {seed: value for seed, value in values.items() if value is not None}


def _ordered(rows: list[Row]) -> list[Row]:
    """Plain training first, then by label, each aligned row right after its unaligned twin."""
    groups = {row.method.group for row in rows}
    aligned: dict[str, list[Row]] = defaultdict(list)
    leading = []
    for row in sorted(rows, key=lambda row: (not row.method.is_vanilla, natural_order(row.label))):
        twin = row.method.twin_group
        if twin in groups and twin is not None and twin != row.method.group:
            aligned[twin].append(row)
        else:
            leading.append(row)
    return [each for row in leading for each in (row, *aligned[row.method.group])]


def natural_order(text: str) -> list[tuple[int, float, str]]:
    """Sort key under which 2 comes before 10."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(0, float(part), "") if i % 2 else (1, 0.0, part) for i, part in enumerate(parts)]
