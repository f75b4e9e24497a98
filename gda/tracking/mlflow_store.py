"""Where MLflow keeps its data, and how to make that place once, safely and quietly."""

import contextlib
import hashlib
import logging
import os
import re
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gda.errors import UserError
from gda.tracking.guard import file_guard

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE_NAME = "mlflow.db"
ARTIFACTS_NAME = "mlflow-artifacts"
MAX_NAME_LENGTH = 250

_SQLITE = "sqlite:///"
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # By default a call to a dead server blocks for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


_SCHEMES = ("http", "https", "postgresql", "mysql", "mssql", "databricks")


def default_uri(runs_root: Path | str) -> str:
    """Return the tracking URI of the database that lies beside the runs: an absolute SQLite path.

    Absolute, because MLflow would resolve a relative one in the working directory of each process.
    """
    return _SQLITE + str(Path(runs_root).absolute() / DATABASE_NAME)


def absolute_uri(uri: str) -> str:
    """Make a tracking URI mean the same in every process, or say why it cannot.

    Args:
        uri: ``sqlite:///...``, ``http(s)://...`` or another database URI.

    Returns:
        The URI; a relative SQLite path is resolved in the current working directory.

    Raises:
        UserError: If MLflow has no safe store behind such a URI.
    """
    if uri.startswith("sqlite:"):
        path = uri.removeprefix(_SQLITE)
        if not uri.startswith(_SQLITE) or not path or path.startswith(":") or "?" in path:
            raise UserError(
                f"The tracking URI {uri!r} does not name a database file. Write sqlite:/// and a path, "
                "for example sqlite:////home/me/runs/mlflow.db."
            )
        return _SQLITE + os.path.abspath(path)  # noqa: PTH100 - Path.absolute keeps ".."
    if "://" not in uri or uri.startswith("file:"):
        raise UserError(
            f"The tracking URI {uri!r} names MLflow's file store, which MLflow has given up. Write "
            "sqlite:/// and the path of a database, or the http:// address of an MLflow server."
        )
    if uri.partition("://")[0].partition("+")[0] not in _SCHEMES:
        raise UserError(
            f"MLflow has no store behind the tracking URI {uri!r}. It knows {', '.join(_SCHEMES)} and sqlite."
        )
    return uri


def database_path(uri: str) -> Path | None:
    """Return the file behind an absolute SQLite URI, ``None`` for any other URI."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def artifact_location(uri: str, experiment: str) -> str | None:
    """Return where an experiment's artifacts go.

    Args:
        uri: The tracking URI.
        experiment: The experiment's name.

    Returns:
        An absolute folder beside a SQLite database, as a ``file://`` URI; ``None`` for a server,
        which decides itself.
    """
    database = database_path(uri)
    if database is None:
        return None
    return (database.parent / ARTIFACTS_NAME / experiment).as_uri()


def prepare_store(uri: str) -> None:
    """Make the SQLite database behind ``uri`` if it does not exist; nothing for other URIs.

    MLflow needs seconds to build a new database, and processes that do so together crash. Here the
    first one builds it under a lock, in a temporary file that is renamed when complete; the others
    wait. Afterwards the call costs a millisecond and does not import MLflow.

    Args:
        uri: The tracking URI, absolute as from `absolute_uri`.

    Raises:
        UserError: If the URI is relative, or the place cannot be written.
    """
    database = database_path(uri)
    if database is None:
        return
    if not database.is_absolute():
        raise UserError(f"The tracking URI {uri!r} is relative. Write {_SQLITE}{database.absolute()}.")
    if _is_built(database):
        return
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with file_guard(database.with_name(database.name + ".lock"), timeout_seconds=300):
            if not _is_built(database):
                _build(database)
    except OSError as error:
        raise UserError(f"The MLflow database {database} cannot be made: {error}.") from error


def open_client(uri: str) -> "MlflowClient":
    """Return an ``MlflowClient`` for ``uri``, with bounded waiting and without telemetry.

    The first call imports MLflow, which takes seconds: make it where nobody waits.
    """
    prepare_store(uri)
    configure_environment()
    from mlflow import MlflowClient

    with _quiet():
        return MlflowClient(tracking_uri=uri)


def check_store(uri: str) -> None:
    """Ask the store behind ``uri`` one small question.

    Args:
        uri: The tracking URI, absolute as from `absolute_uri`.

    Raises:
        UserError: If it does not answer, or not as an MLflow store.
    """
    try:
        open_client(uri).search_experiments(max_results=1)
    except UserError:
        raise
    except Exception as error:  # whatever MLflow, SQLAlchemy and the HTTP client raise
        raise UserError(
            f"The MLflow store at {uri} cannot be used: {one_line(error)}. If it is a server, start it "
            "or correct the address; nothing is lost, the run folders keep everything. --uri names "
            "another store, for example sqlite:////home/me/runs/mlflow.db."
        ) from error


def configure_environment() -> None:
    """Set what MLflow reads from the environment, except what the user has set.

    To be called before MLflow is imported: some of it is read then.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def clean_name(name: str) -> str:
    """Turn any text into a metric or parameter name that MLflow takes.

    It takes letters, digits and ``_-.: /``, in at most 250 characters that are a normal relative
    path. Everything else becomes an underscore; a name that is too long keeps its beginning and
    gets a hash.
    """
    parts = [part for part in re.sub(r"[^\w.\-: /]", "_", name).split("/") if part]
    clean = "/".join("_" * len(part) if part in (".", "..") else part for part in parts) or "_"
    if len(clean) > MAX_NAME_LENGTH:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        clean = f"{clean[: MAX_NAME_LENGTH - 9].rstrip('/')}-{digest}"
    return clean


def one_line(error: BaseException) -> str:
    """Return the beginning of an error's message, fit for one line of a log."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _is_built(database: Path) -> bool:
    """Whether the file holds a complete MLflow database, of whatever version.

    Migrations record themselves in ``alembic_version``; a database is built in another file, so a
    row there means all of them.
    """
    if not database.is_file():
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute("select count(*) from alembic_version").fetchone()[0] > 0
    except sqlite3.Error:
        return False


def _build(database: Path) -> None:
    configure_environment()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    if database.exists() and database.stat().st_size > 0:
        # Somebody else's database, perhaps half built by an MLflow that was killed: MLflow itself
        # adds what is missing, and a copy of its own would lose what is in there.
        temporary = database
    else:
        temporary = database.with_name(f".{database.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with _quiet():
            store = SqlAlchemyStore(_SQLITE + str(temporary), (database.parent / ARTIFACTS_NAME).as_uri())
        store.engine.dispose()  # closes the connections to the name that is about to vanish
        if temporary != database:
            temporary.replace(database)
    finally:
        if temporary != database:
            for leftover in database.parent.glob(temporary.name + "*"):
                leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the hundred lines that building a database logs."""
    loggers = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "alembic")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
