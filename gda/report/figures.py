"""Which figures of a run a report shows: the one it is judged by, and what stands beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from gda.report.records import Run

SHOT_FIGURE = re.compile(r"(\d+)shot")
BASE_TOP1 = "base_test_top1"

IMAGE_FIGURES = (
    # name, heading, digits
    ("top1", "top-1 %", 2),
    ("top5", "top-5 %", 2),
    ("loss", "loss", 4),
    ("ece", "ECE", 4),
    ("agreement", "agreement %", 2),
    ("teacher_kl", "teacher KL", 4),
)
"""What is measured on the images of a split: name as it follows the split's, heading, digits."""

_BESIDE = re.compile(r"test_(\d+)shot(?:_(auc|probe))?")
_READINGS = ("", "auc", "probe")
"""Readings of an episode's features, in the order of their columns; the first is the accuracy."""


class ShotFigure(NamedTuple):
    """A figure on episodes: what was read, and with how many known images of each class."""

    reading: str
    shot: int

    @property
    def heading(self) -> str:
        """For example ``5-shot`` or ``1-shot AUC``."""
        named = {"": "", "auc": " AUC", "probe": " probe"}
        return f"{self.shot}-shot{named[self.reading]}"

    @property
    def key(self) -> str:
        """As it is called in a row, for example ``test_1shot_auc``."""
        return f"test_{self.shot}shot" + (f"_{self.reading}" if self.reading else "")


def last_figure(run: Run) -> float | None:
    """The run's test figure after the last epoch, percent."""
    return run.last.get(run.test_figure)


def best_figure(run: Run) -> float | None:
    """Its test figure at the best validation epoch, percent; None without a validation share."""
    return run.best.get(run.test_figure) if run.best is not None and run.selection == "validation" else None


def oracle_figure(run: Run) -> float | None:
    """Highest test figure of a run without validation, percent; None where `best` exists.

    A test has one figure only: there is nothing to select, and so no oracle.
    """
    return run.oracle if best_figure(run) is None and not run.is_test else None


def fidelity(run: Run, name: str) -> float | None:
    """A figure such as ``agreement`` after the last epoch, on test images.

    Args:
        run: the run.
        name: what follows ``test_``, or ``base_test_`` where only a classifier of base classes has it.
    """
    return run.last.get(f"test_{name}", run.last.get(f"base_test_{name}"))


def is_few_shot(run: Run) -> bool:
    """Say whether a run is judged on episodes."""
    return SHOT_FIGURE.fullmatch(run.figure) is not None


def shot_figure(name: str) -> ShotFigure | None:
    """Take the name of a test figure on episodes apart; None for any other name."""
    found = _BESIDE.fullmatch(name)
    return None if found is None else ShotFigure(found[2] or "", int(found[1]))


def shot_figures(names: Iterable[str]) -> list[ShotFigure]:
    """Find the test figures on episodes among some names: accuracies first, by number of shots."""
    found = {figure for name in names if (figure := shot_figure(name)) is not None}
    return sorted(found, key=lambda figure: (_READINGS.index(figure.reading), figure.shot))


def beside(run: Run) -> Mapping[str, float]:
    """What a few-shot run has measured beside its main figure, after the last epoch, percent by name."""
    if not is_few_shot(run):
        return {}
    names = [figure.key for figure in shot_figures(run.last)] + [BASE_TOP1]
    return {name: run.last[name] for name in names if name in run.last and name != run.test_figure}


def spoken(figure: str) -> str:
    """Write the name of a figure as it is read: ``1shot`` as ``1-shot``, any other as it is."""
    return SHOT_FIGURE.sub(r"\1-shot", figure)


def spoken_text(run: Run) -> str:
    """Say what a run is judged by in running text: ``top-1``, ``5-way 1-shot accuracy on novel classes``."""
    return run.figure_text.removesuffix(" accuracy")


def of_other_shots(figure_text: str, shot: int) -> str:
    """Put another number of shots into a figure's text, for example 5 into ``5-way 1-shot accuracy``."""
    return re.sub(r"\d+-shot", f"{shot}-shot", figure_text)
