"""The table below a few-shot test: each run on its episodes, and against its baselines on the same ones.

The spread over seeds says how much training varies; an interval over episodes says how well one trained
student was measured. They answer different questions, and stand in different tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from gda.report.aggregate import Table
from gda.report.column import Column
from gda.report.episodes import OTHER_EPISODES, EpisodeMean, paired_over_episodes
from gda.report.few_shot_columns import AUC_NOTE, BASE_NOTE, PROBE_NOTE
from gda.report.figures import BASE_TOP1, ShotFigure, shot_figures
from gda.report.records import Run, RunKey
from gda.report.wording import NOT_APPLICABLE, UNKNOWN, mean_and_half, number, with_interval

EACH_RUN = "Each run on its episodes"

_ACCURACY_NOTE = (
    "accuracy: in percent, ± half the width of its 95% Student-t interval over the episodes: how well this "
    "run was measured, not how much training varies."
)
_BATCH_NOTE = "± over batches: the same interval over the means of batches of episodes, as it is published."
_PAIRED_NOTE = (
    "Differences are to the run of equal seed, in percentage points, paired episode by episode, with a 95% "
    "Student-t interval over the episodes: it does not cover the seeds of training. †: this interval "
    "excludes 0; each stands alone, without correction for the number of runs. "
    "other episodes: the two runs were tested on different ones, and are not compared."
)


@dataclass(frozen=True)
class EpisodeRow:
    """One test and one number of shots.

    Attributes:
        label: name of the method.
        run: the test.
        shot: known images of each class.
        twin: difference to the run with alignment=none, or in a word why there is none.
        vanilla: difference to plain training, or in a word why there is none.
    """

    label: str
    run: Run
    shot: int
    twin: EpisodeMean | str
    vanilla: EpisodeMean | str

    @property
    def episodes(self) -> int | None:
        """Number of episodes behind the accuracy; None when their figures cannot be read."""
        shares = self.run.episodes.get(ShotFigure("", self.shot).key)
        return None if shares is None else len(shares.shares)


def episode_rows(table: Table) -> list[EpisodeRow]:
    """List the finished tests of a table, one row for each number of shots; none for tasks that train."""
    if not table.is_test:
        return []
    runs = {(run.method.group, run.seed): run for row in table.rows for run in row.done}
    return [
        EpisodeRow(
            row.label,
            run,
            figure.shot,
            _compared(run, runs, row.method.twin_group, figure.key),
            _compared(run, runs, row.method.vanilla_group, figure.key),
        )
        for row in table.rows
        for run in row.done
        for figure in shot_figures(run.last)
        if not figure.reading
    ]


def episode_columns(rows: Sequence[EpisodeRow]) -> list[Column[EpisodeRow]]:
    """Choose the columns that some row has figures for."""
    chosen: list[Column[EpisodeRow]] = [
        Column("method", lambda row: row.label, figure=False),
        Column("seed", lambda row: str(row.run.seed)),
        Column("shots", lambda row: str(row.shot)),
        Column("accuracy", partial(_figure, reading=""), note=_ACCURACY_NOTE),
        Column("± over batches", _over_batches, primary=False, note=_BATCH_NOTE),
        Column("vs alignment=none", lambda row: _difference(row.twin), note=_PAIRED_NOTE),
        Column("vs vanilla", lambda row: _difference(row.vanilla), note=_PAIRED_NOTE),
        Column("episodes", lambda row: UNKNOWN if row.episodes is None else str(row.episodes)),
        Column("AUC", partial(_figure, reading="auc"), primary=False, note=AUC_NOTE),
        Column("probe", partial(_figure, reading="probe"), primary=False, note=PROBE_NOTE),
        Column("base top-1", _base, primary=False, note=BASE_NOTE),
    ]
    optional = {"± over batches", "AUC", "probe", "base top-1"}
    return [
        column
        for column in chosen
        if column.heading not in optional or any(column.text(row) != UNKNOWN for row in rows)
    ]


def _compared(run: Run, runs: Mapping[RunKey, Run], baseline: str | None, name: str) -> EpisodeMean | str:
    if baseline is None or baseline == run.method.group:
        return NOT_APPLICABLE
    other = runs.get((baseline, run.seed))
    if other is None or name not in run.episodes or name not in other.episodes:
        return UNKNOWN
    found = paired_over_episodes(run.episodes[name], other.episodes[name])
    return OTHER_EPISODES if found is None else found


def _figure(row: EpisodeRow, reading: str) -> str:
    key = ShotFigure(reading, row.shot).key
    return mean_and_half(row.run.last.get(key), row.run.last.get(f"{key}_interval"))


def _over_batches(row: EpisodeRow) -> str:
    half = row.run.last.get(f"{ShotFigure('', row.shot).key}_batch_interval")
    return UNKNOWN if half is None else number(half)


def _base(row: EpisodeRow) -> str:
    return number(row.run.last[BASE_TOP1]) if BASE_TOP1 in row.run.last else UNKNOWN


def _difference(value: EpisodeMean | str) -> str:
    if isinstance(value, str):
        return value
    return with_interval(value.mean, value.low, value.high, value.excludes_zero)
