"""Write the report of a study: page, figures as CSV, pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gda.errors import UserError
from gda.report.aggregate import Table, aggregate
from gda.report.collect import read_study
from gda.report.csv_files import runs_csv, table_csv
from gda.report.plots import curves_png, differences_png
from gda.report.records import Study
from gda.report.tables import markdown_page
from gda.tracking.atomic import write_bytes_atomic, write_text_atomic

PICTURES: tuple[tuple[str, str, Callable[[Table], bytes | None]], ...] = (
    ("curves", "Test accuracy per epoch", curves_png),
    ("differences", "Paired differences over seeds", differences_png),
)


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        folder: where the files lie.
        files: the files, the page `report.md` first.
        tables: the tables, as data.
        study: what they were built from.
    """

    folder: Path
    files: tuple[Path, ...]
    tables: tuple[Table, ...]
    study: Study

    @property
    def page(self) -> Path:
        """The markdown page."""
        return self.files[0]


def write_report(study_folder: Path, output: Path | None = None) -> Report:
    """Read a study and write its report.

    Every file is replaced in one step, so a reader never sees half of one; runs may still be
    going on.

    Args:
        study_folder: ``RUNS/STUDY``.
        output: where to write; ``RUNS/STUDY/report`` by default.

    Raises:
        UserError: the study folder does not exist.
    """
    if not study_folder.is_dir():
        raise UserError(f"There is no study folder {study_folder}.")
    study = read_study(study_folder)
    tables = aggregate(study)
    folder = output if output is not None else study_folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, list[tuple[str, str]]] = {}
    files: list[Path] = []
    taken: set[str] = set()
    for table in tables:
        slug = _unused(table.slug, taken)
        for kind, text, draw in PICTURES:
            picture = draw(table)
            if picture is not None:
                path = folder / f"{kind}-{slug}.png"
                write_bytes_atomic(path, picture)
                files.append(path)
                pictures.setdefault(table.title, []).append((path.name, f"{text}: {table.title}"))
    texts = {
        "table.csv": table_csv(tables),
        "runs.csv": runs_csv(study),
        # The page comes last: what it embeds is there already.
        "report.md": markdown_page(study, tables, pictures),
    }
    for name, text in texts.items():
        write_text_atomic(folder / name, text)
    named = tuple(folder / name for name in ("report.md", "table.csv", "runs.csv"))
    return Report(folder, named + tuple(files), tables, study)


def _unused(slug: str, taken: set[str]) -> str:
    """Number a file name that another table has taken: names differ in more than file names can."""
    name, number = slug, 2
    while name in taken:
        name, number = f"{slug}-{number}", number + 1
    taken.add(name)
    return name
