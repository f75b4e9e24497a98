"""From run folders to one honest table per comparison: `write_report(study_folder)`.

Reads files only: no torch, no MLflow, no model code, so that the report starts at once and
works on any machine that holds the run folders.
"""

from gda.report.write import Report, write_report

__all__ = ["Report", "write_report"]
