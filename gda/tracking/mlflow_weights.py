"""The weights of a run that is named by its MLflow id: in its run folder, else among its artifacts."""

import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from gda.errors import UserError
from gda.tracking.mlflow_run import known_run
from gda.tracking.mlflow_store import absolute_uri, database_path, one_line, open_client
from gda.tracking.mlflow_tags import RUN_TAG
from gda.tracking.run_folder import RunFolder

_SUFFIXES = (".safetensors", ".pt", ".pth", ".tar", ".bin")


def find_weights(uri: str, run_id: str, runs_root: Path, select: str, cache: Path) -> Path:
    """Returns a local file with the weights of an MLflow run.

    A run of this project is found in its folder below ``runs_root``; of any other run, or one whose
    folder is elsewhere, the artifacts are fetched: the one whose name begins with ``select``, else the
    only file of weights that there is.

    Args:
        uri: The tracking URI.
        run_id: The run's id in MLflow.
        runs_root: Folder of all run folders.
        select: ``last`` or ``best``.
        cache: Folder for fetched artifacts; each run, and each ``select`` of it, gets its own folder in it.

    Raises:
        UserError: The store does not answer, has no such run, or the run has no file of weights.
    """
    uri = absolute_uri(uri)
    database = database_path(uri)
    if database is not None and not database.is_file():
        raise UserError(f"there is no MLflow store at {uri}, and so no run {run_id} in it")
    try:
        client = open_client(uri)
        run = known_run(client, run_id)
        if run is None:
            raise UserError(f"the MLflow store at {uri} has no run {run_id}")
        tagged, _, folder_id = run.data.tags.get(RUN_TAG, "").rpartition(":")
        folder = RunFolder(runs_root.joinpath(*tagged.split("/"))) if tagged else None
        if folder is not None and folder.description().get("id") == folder_id:
            file = folder.path / f"{select}.pt"
            if file.is_file():
                return file
            raise UserError(f"the run {run_id} lies in {folder}, which holds no {file.name}")
        artifact = _choose(run_id, select, _artifacts(client, run_id))
        return _download(client, run_id, artifact, _kept(run_id, select, cache))
    except UserError:
        raise
    except Exception as error:  # whatever MLflow, SQLAlchemy and the HTTP client raise
        raise UserError(f"the MLflow store at {uri} can't be read: {one_line(error)}") from error


def cached_weights(run_id: str, select: str, cache: Path) -> Path | None:
    """Returns the file that an earlier call with the same ``select`` has fetched, or nothing."""
    files = [path for path in _kept(run_id, select, cache).rglob("*") if path.suffix in _SUFFIXES]
    return files[0] if len(files) == 1 else None


def _kept(run_id: str, select: str, cache: Path) -> Path:
    """Returns the folder of what is fetched of a run for one choice of its epochs."""
    return cache / run_id / select


def _download(client, run_id: str, artifact: str, target: Path) -> Path:  # type: ignore[no-untyped-def]
    """Fetches an artifact; ``target`` appears with all of it or not at all."""
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    partial.mkdir(parents=True)
    try:
        fetched = Path(client.download_artifacts(run_id, artifact, str(partial))).relative_to(partial)
        with suppress(OSError):  # another process was faster
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target / fetched


def _artifacts(client, run_id: str, folder: str | None = None) -> list[str]:  # type: ignore[no-untyped-def]
    found = []
    for item in client.list_artifacts(run_id, folder):
        if item.is_dir:
            found += _artifacts(client, run_id, item.path)
        elif Path(item.path).suffix in _SUFFIXES:
            found.append(item.path)
    return found


def _choose(run_id: str, select: str, found: list[str]) -> str:
    selected = [path for path in found if Path(path).name.startswith(select)]
    if len(selected) == 1 or len(found) == 1:
        return (selected or found)[0]
    if not found:
        raise UserError(f"the MLflow run {run_id} has no run folder here and no file of weights as artifact")
    raise UserError(f"the MLflow run {run_id} holds several files of weights: {', '.join(found[:6])}")
