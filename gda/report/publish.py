"""Write the report of a study and print it: what a finished run or sweep may end with."""

from __future__ import annotations

from pathlib import Path

from gda.report.tables import print_tables
from gda.report.write import write_report


def publish(study: Path) -> None:
    """Write the report of a study, print its tables, and the path of its page last.

    Args:
        study: ``RUNS/STUDY``.
    """
    report = write_report(study)
    print_tables(report.study, report.tables)
    print(report.page)
