"""One column of a table: a heading, and how a row fills it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from gda.report.spread import Summary

RowT = TypeVar("RowT")


@dataclass(frozen=True)
class Column(Generic[RowT]):
    """A heading and the text below it.

    Attributes:
        ranked: the figure whose largest mean is set in bold; None for columns that must not
            be ranked, such as figures that were selected on the test set.
        primary: shown on the terminal too, which is narrower than a page.
        note: what the column means, where no note of the table says it.
    """

    heading: str
    text: Callable[[RowT], str]
    ranked: Callable[[RowT], Summary] | None = None
    figure: bool = True
    primary: bool = True
    note: str | None = None


def explained(columns: Sequence[Column[RowT]]) -> list[str]:
    """Return the notes of some columns, each once."""
    return list(dict.fromkeys(column.note for column in columns if column.note))
