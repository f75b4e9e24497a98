"""What the tables of few-shot tasks have beside their main figure, and what each of it means."""

from __future__ import annotations

from functools import partial

from gda.report.aggregate import Row, Table
from gda.report.column import Column
from gda.report.figures import BASE_TOP1, ShotFigure, of_other_shots, shot_figures
from gda.report.spread import Summary
from gda.report.wording import UNKNOWN, mean_and_std

AUC_NOTE = (
    "AUC: on episodes of two classes, how well the similarity to the mean shot of one class tells its "
    "queries from those of the other: the single-class area under the ROC curve in percent; 50 is chance."
)
PROBE_NOTE = (
    "probe: accuracy in percent of a logistic regression that is fitted to the features of an episode's "
    "shots, on the first of the episodes (task.probe_batches)."
)
BASE_NOTE = "base top-1: top-1 accuracy in percent on held-out images of the base classes."

_FIDELITY = {
    "agreement %": "agreement %: share of {where} to which student and teacher give the same class.",
    "ECE": "ECE: expected calibration error over 15 bins, on {where}.",
    "teacher KL": "teacher KL: KL(teacher || student) in nats an image, on {where}.",
}


def beside_columns(table: Table) -> list[Column[Row]]:
    """Return a column for each further figure of a few-shot table; none for other tables.

    The accuracies of a test with other shots are shown on the terminal, too: its tables have few columns.
    """
    names = {name for row in table.rows for name in row.beside}
    chosen = [
        Column(
            figure.heading,
            partial(_text, name=figure.key),
            partial(_summary, name=figure.key),
            primary=table.is_test and not figure.reading,
            note=_note(table, figure),
        )
        for figure in shot_figures(names)
    ]
    if BASE_TOP1 in names:
        base = Column(
            "base top-1",
            partial(_text, name=BASE_TOP1),
            partial(_summary, name=BASE_TOP1),
            primary=False,
            note=BASE_NOTE,
        )
        chosen.insert(sum(not figure.reading for figure in shot_figures(names)), base)
    return chosen


def fidelity_note(table: Table, heading: str) -> str | None:
    """Say what a column of fidelity or calibration was measured on; None for other tasks."""
    if not table.is_few_shot:
        return None
    on_base = any("base_test_ece" in run.last for row in table.rows for run in row.done)
    where = "held-out images of the base classes" if on_base else "the queries of the test episodes"
    return _FIDELITY[heading].format(where=where)


def _note(table: Table, figure: ShotFigure) -> str:
    if figure.reading:
        return {"auc": AUC_NOTE, "probe": PROBE_NOTE}[figure.reading]
    when = "" if table.is_test else " after the last epoch"
    text = of_other_shots(table.figure_texts[0], figure.shot)
    return f"{figure.heading}: test {text} in percent{when}, mean ± standard deviation."


def _summary(row: Row, name: str) -> Summary:
    return row.beside.get(name, Summary(0, None, None))


def _text(row: Row, name: str) -> str:
    return mean_and_std(row.beside[name], row.last.n) if name in row.beside else UNKNOWN
