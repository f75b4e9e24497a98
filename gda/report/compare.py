"""`python -m gda.report.compare RUN_FOLDER BASELINE_FOLDER`: two few-shot tests, episode by episode."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from gda.errors import UserError
from gda.report.collect import read_run
from gda.report.column import Column
from gda.report.episodes import (
    OTHER_EPISODES,
    EpisodeMean,
    mean_over_episodes,
    paired_over_episodes,
    read_episodes,
)
from gda.report.fields import Unreadable
from gda.report.figures import is_few_shot, shot_figures
from gda.report.labels import read_leaves
from gda.report.records import FEW_SHOT_TEST, EpisodeShares, Run
from gda.report.tables import print_grid, widened
from gda.report.wording import mean_and_half, with_interval

_EPISODE_OPTIONS = ("way", "shots", "query", "episodes_per_batch", "batches", "episode_seed")
# What a data set node holds beside the things that decide its images and classes.
_NOT_THE_IMAGES = (
    "_target_", "root", "download", "max_memory_gib", "cache", "force", "mean", "std", "image_size",
    "train_image_size",
)  # fmt: skip


@dataclass(frozen=True)
class ComparedFigure:
    """One figure of two tests.

    Attributes:
        heading: what it is, for example ``1-shot AUC``.
        run: mean of the run in percent, over its episodes.
        baseline: mean of the baseline.
        difference: mean of the paired differences in percentage points; None on other episodes.
    """

    heading: str
    run: EpisodeMean
    baseline: EpisodeMean
    difference: EpisodeMean | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gda.report.compare",
        description="Compare two few-shot tests on identical episodes, paired episode by episode.",
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN_FOLDER", help="folder of a run with task=few_shot_test"
    )
    parser.add_argument("baseline", type=Path, metavar="BASELINE_FOLDER", help="what it is compared with")
    options = parser.parse_args(arguments)
    try:
        run, baseline = read_test(options.run), read_test(options.baseline)
        figures = compare(run, baseline)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print_comparison(run, baseline, figures)
    return 0


def read_test(folder: Path) -> Run:
    """Read a finished few-shot test with the figures of its episodes.

    Args:
        folder: ``RUNS/STUDY/NAME-GROUP/seedK``.

    Raises:
        UserError: there is no such folder, or it holds no finished few-shot test.
    """
    if not folder.is_dir():
        raise UserError(f"There is no run folder {str(folder)!r}.{_near(folder)}")
    if not (folder / "run.json").exists():
        seeds = sorted(str(path) for path in folder.glob("seed*") if path.is_dir())
        hint = f" Name one of its runs: {', '.join(seeds)}." if seeds else ""
        raise UserError(f"{str(folder)!r} is no run folder: it has no run.json.{hint}")
    run, _ = read_run(folder.absolute())
    if not run.is_test:
        hint = ""
        if is_few_shot(run):
            hint = (
                f" Test it first: repeat its command with task={FEW_SHOT_TEST} "
                f"task@task.stage={run.method.task}, and name the folder of that run."
            )
        raise UserError(
            f"{str(folder)!r} is a run of task {run.method.task}, not {FEW_SHOT_TEST}: it keeps no figures "
            f"of single episodes.{hint}"
        )
    if not run.finished:
        raise UserError(f"{str(folder)!r} is not finished: {run.progress}. Repeat its command to finish it.")
    return run


def compare(run: Run, baseline: Run) -> list[ComparedFigure]:
    """Compare two tests in all figures that both have.

    Args:
        run: a finished test.
        baseline: another one.

    Returns:
        The figures, accuracies first. Some may stand on other episodes, as the probe with another
        ``probe_batches``; but not all of them.

    Raises:
        UserError: the files of the episodes cannot be read, the tests have no figure in common, or they
            were made on other episodes.
    """
    own, other = _episodes(run), _episodes(baseline)
    shared = [figure for figure in shot_figures(own) if figure.key in other]
    if not shared:
        raise UserError(
            f"The tests have no figure in common: {run.folder} has {_listed(own)}; {baseline.folder} has "
            f"{_listed(other)}. Repeat one with the task.shots of the other."
        )
    figures = [
        ComparedFigure(
            figure.heading,
            mean_over_episodes(own[figure.key]),
            mean_over_episodes(other[figure.key]),
            paired_over_episodes(own[figure.key], other[figure.key]),
        )
        for figure in shared
    ]
    if all(figure.difference is None for figure in figures):
        raise UserError(
            f"{run.folder} and {baseline.folder} were tested on other episodes, so they cannot be paired: "
            f"{_what_differs(run, baseline)}"
        )
    return figures


def print_comparison(
    run: Run, baseline: Run, figures: Sequence[ComparedFigure], console: Console | None = None
) -> None:
    """Print the comparison as one table."""
    columns: list[Column[ComparedFigure]] = [
        Column("figure", lambda row: row.heading, figure=False),
        Column("RUN", lambda row: mean_and_half(row.run.mean, row.run.half)),
        Column("BASELINE", lambda row: mean_and_half(row.baseline.mean, row.baseline.half)),
        Column("RUN - BASELINE", lambda row: _difference(row.difference)),
        Column("episodes", lambda row: _episode_count(row)),
    ]
    notes = [
        "Means in percent, ± half the width of the 95% Student-t interval over the episodes. Differences in "
        "percentage points, paired episode by episode, with a 95% Student-t interval: it covers the draw of "
        "episodes, not the seeds of training. †: this interval excludes 0; each stands alone, without "
        "correction for the number of rows."
    ]
    console = widened(console or Console())
    console.print(Text(f"RUN:      {_named(run)}"), soft_wrap=True)
    console.print(Text(f"BASELINE: {_named(baseline)}"), soft_wrap=True)
    print_grid(console, "Paired on identical episodes", columns, figures, notes)


def _difference(value: EpisodeMean | None) -> str:
    if value is None:
        return OTHER_EPISODES
    return with_interval(value.mean, value.low, value.high, value.excludes_zero)


def _episode_count(row: ComparedFigure) -> str:
    return str(row.run.n) if row.run.n == row.baseline.n else f"{row.run.n}, {row.baseline.n}"


def _named(run: Run) -> str:
    return f"{run.method.label}: {run.method.pair}, seed {run.seed} ({run.path})"


def _episodes(run: Run) -> Mapping[str, EpisodeShares]:
    try:
        return read_episodes(run)
    except Unreadable as reason:
        raise UserError(
            f"{run.path} cannot be compared: {reason}. Delete the folder and repeat its command."
        ) from None


def _listed(episodes: Mapping[str, EpisodeShares]) -> str:
    return ", ".join(figure.heading for figure in shot_figures(episodes))


def _what_differs(run: Run, baseline: Run) -> str:
    """Name the options that decide episodes and differ, as far as the configs of the runs tell."""
    own, other = (read_leaves(each.path / "config.yaml") for each in (run, baseline))
    if not own or not other:
        return "the config.yaml of one of them cannot be read, so what differs is not known."
    options = [f"task.{name}" for name in _EPISODE_OPTIONS] + ["dataset.name"]
    data = [leaf for leaf in {**own, **other} if leaf.startswith("dataset.") and leaf not in options]
    images = [leaf for leaf in data if leaf.split(".")[1] not in _NOT_THE_IMAGES]
    for leaves in (options, images):
        different = [leaf for leaf in leaves if own.get(leaf) != other.get(leaf)]
        if different:
            listed = "; ".join(
                f"{leaf}={own.get(leaf, 'unset')} and {other.get(leaf, 'unset')}" for leaf in different
            )
            return f"{listed}. Repeat one with the options of the other."
    return "their configs agree, so the images or classes of the data set must differ."


def _near(folder: Path) -> str:
    """Name folders that are called much the same, where the path goes astray."""
    parts = folder.parts
    for length in range(1, len(parts) + 1):
        parent, wanted = Path(*parts[: length - 1]), parts[length - 1]
        if not Path(*parts[:length]).is_dir() and parent.is_dir():
            there = {path.name.lower(): str(path) for path in sorted(parent.iterdir()) if path.is_dir()}
            close = difflib.get_close_matches(wanted.lower(), there, n=3)
            near = close or [name for name in there if name.startswith(wanted.lower())][:3]
            return f" Did you mean {' or '.join(repr(there[name]) for name in near)}?" if near else ""
    return ""


if __name__ == "__main__":
    sys.exit(main())
