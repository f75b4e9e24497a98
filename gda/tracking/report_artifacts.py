"""Puts the files of a study's report into MLflow, beside the runs that it compares."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gda.errors import UserError
from gda.tracking.mlflow_ledger import LEDGER_NAME, recorded
from gda.tracking.mlflow_run import experiment_id, find_or_create, set_state
from gda.tracking.mlflow_store import absolute_uri, database_path, one_line, open_client
from gda.tracking.mlflow_tags import RUN_TAG


def log_report(study_folder: Path, files: Sequence[Path]) -> str | None:
    """Log the files of a report as artifacts of one MLflow run, ``report STUDY``.

    The run lies where the study's own runs were mirrored to (if to several places, where most of
    them are). A report that is written again replaces the files in the same run. A study that was
    never mirrored costs nothing: MLflow is not imported.

    Args:
        study_folder: ``RUNS/STUDY``.
        files: What to log, by their own names.

    Returns:
        The id of the MLflow run; ``None`` if no run of the study was mirrored.

    Raises:
        UserError: If the store cannot be used, in one line.
    """
    ledgers = [recorded(path.parent) for path in sorted(study_folder.glob(f"*/seed*/{LEDGER_NAME}"))]
    places = Counter(
        (ledger["uri"], ledger["experiment"]) for ledger in ledgers if {"uri", "experiment"} <= ledger.keys()
    )
    if not places:
        return None
    (uri, experiment), _ = places.most_common(1)[0]
    try:
        return _log(uri, experiment, study_folder.resolve().name, files)
    except Exception as error:  # whatever MLflow, SQLAlchemy and the HTTP client raise
        raise UserError(
            f"The report is not in MLflow, which cannot be used at {uri}: {one_line(error)}"
        ) from error


def _log(uri: str, experiment: str, study: str, files: Sequence[Path]) -> str:
    database = database_path(absolute_uri(uri))
    if database is not None and not database.is_file():
        # The runs may have been copied from elsewhere: no empty database is made in that place.
        raise UserError(f"there is no file {database}")
    client = open_client(uri)
    tags = {RUN_TAG: f"report:{study}", "kind": "report", "study": study}
    run, _ = find_or_create(client, experiment_id(client, uri, experiment), f"report {study}", tags)
    for file in files:
        client.log_artifact(run.info.run_id, str(file))
    newest = max((int(1000 * file.stat().st_mtime) for file in files), default=run.info.start_time)
    set_state(client, run.info.run_id, "done", max(newest, run.info.start_time))
    return str(run.info.run_id)
