"""Where weights come from: a file, a run folder, a URL or an MLflow run, by the form of the text.

What is at hand is checked before anything runs; what must be fetched is fetched only when everything
else of a config, or of a whole sweep, is without faults, and checked then.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gda.config.stages import AUTO, needs_of, with_runs_before
from gda.errors import UserError
from gda.models.weights.download import cache_folder, cached_file, fetch, is_url
from gda.tracking.near_runs import near_runs
from gda.tracking.run_folder import RunFolder

MLFLOW = "mlflow:"


@dataclass(frozen=True)
class WeightsSource(ABC):
    """One way to name weights.

    Attributes:
        text: What was typed.
        select: ``last`` or ``best``, where a run is named.
        sha256: What the file's hash must be; ``None`` to take any.
        runs: Folder of all run folders.
        tracking_uri: Store of MLflow runs.
    """

    text: str
    select: str
    sha256: str | None
    runs: str
    tracking_uri: str | None

    @classmethod
    @abstractmethod
    def names(cls, text: str) -> bool:
        """Says whether the text has the form of this source."""

    @abstractmethod
    def problem(self) -> str | None:
        """Says in words why there can be no weights; fetches nothing."""

    @abstractmethod
    def at_hand(self) -> Path | None:
        """Returns the file, where nothing has to be fetched."""

    def fetched(self) -> Path:
        """Returns the file, after fetching it if need be.

        Raises:
            UserError: It can't be had.
        """
        file = self.at_hand()
        if file is None:
            raise UserError(self.problem() or f"there are no weights in {self.text}")
        return file


class MLflowRun(WeightsSource):
    """``mlflow:<run id>``: the run's folder, else its artifacts."""

    @property
    def run_id(self) -> str:
        """The id in MLflow."""
        return self.text.removeprefix(MLFLOW)

    @classmethod
    def names(cls, text: str) -> bool:
        """Recognises the prefix."""
        return text.startswith(MLFLOW)

    def problem(self) -> str | None:
        """Checks the form of the id; whether there is such a run shows when it is fetched."""
        if re.fullmatch(r"[\w-]+", self.run_id):
            return None
        return f"{self.run_id!r} is no MLflow run id; the MLflow UI shows it on the run's page"

    def at_hand(self) -> Path | None:
        """Returns what an earlier call has found, in this process or among the fetched artifacts."""
        from gda.tracking.mlflow_weights import cached_weights

        return _FOUND.get(self) or cached_weights(self.run_id, self.select, _mlflow_cache())

    def fetched(self) -> Path:
        """Asks the store (see :func:`gda.tracking.mlflow_weights.find_weights`)."""
        from gda.tracking.mlflow_store import default_uri
        from gda.tracking.mlflow_weights import find_weights

        file = self.at_hand()
        if file is None:
            uri = self.tracking_uri or default_uri(self.runs)
            file = find_weights(uri, self.run_id, Path(self.runs), self.select, _mlflow_cache())
            _FOUND[self] = file
        return file


_FOUND: dict[MLflowRun, Path] = {}  # a store takes seconds to open, and the cells of a sweep share a teacher


class URL(WeightsSource):
    """``https://...``: fetched once into the cache."""

    @classmethod
    def names(cls, text: str) -> bool:
        """Recognises every address with a scheme."""
        return "://" in text

    def problem(self) -> str | None:
        """Checks the scheme, and that a ``file://`` address leads to a file."""
        if not is_url(self.text):
            return f"{self.text} is no address that files can be fetched from"
        try:
            missing = self.text.startswith("file:") and cached_file(self.text) is None
        except UserError as error:
            return str(error)
        return f"there is no file behind {self.text}" if missing else None

    def at_hand(self) -> Path | None:
        """Returns the cached file, unless its hash is another."""
        return cached_file(self.text, self.sha256) if is_url(self.text) else None

    def fetched(self) -> Path:
        """Fetches the file into the cache, unless it is there."""
        return fetch(self.text, self.sha256)


class Folder(WeightsSource):
    """A run folder, or a folder that the import or export command has written."""

    @property
    def _candidates(self) -> tuple[Path, ...]:
        folder = Path(self.text)
        run = (folder / f"{self.select}.pt",) if (folder / "run.json").is_file() else ()
        return (*run, folder / "model.safetensors")

    @classmethod
    def names(cls, text: str) -> bool:
        """Recognises a folder that exists."""
        return Path(text).is_dir()

    def problem(self) -> str | None:
        """Says what the folder lacks."""
        if self.at_hand() is not None:
            return None
        if (Path(self.text) / "run.json").is_file():
            return f"the run folder {self.text} holds no {self.select}.pt"
        advice = near_runs(Path(self.text)) or "Name a file in it"
        return f"{self.text} is a folder, but not of a run. {advice}"

    def at_hand(self) -> Path | None:
        """Returns the run's checkpoint, or the exported weights."""
        return next((path for path in self._candidates if path.is_file()), None)


class File(WeightsSource):
    """A path."""

    @classmethod
    def names(cls, text: str) -> bool:
        """Takes what no other source recognises."""
        return True

    def problem(self) -> str | None:
        """Says that there is no such file, and what looks like it."""
        if self.at_hand() is not None:
            return None
        advice = near_runs(Path(self.text))
        return f"there is no file {self.text}" + (f". {advice}" if advice else "")

    def at_hand(self) -> Path | None:
        """Returns the path, where it is a file."""
        path = Path(self.text)
        return path if path.is_file() else None


_SOURCES: tuple[type[WeightsSource], ...] = (MLflowRun, URL, Folder, File)


def weights_source(config: Mapping[str, Any], role: str = "teacher") -> WeightsSource | None:
    """Returns what ``ROLE.checkpoint`` names; nothing where there is none, or a run makes it.

    Args:
        config: The resolved config.
        role: The node that holds ``checkpoint``, ``checkpoint_select`` and ``sha256``.
    """
    node = config[role]
    text = node["checkpoint"]
    if role not in roles(config) or text is None or text == AUTO:
        return None
    text = os.path.expanduser(text) if text.startswith("~") else text  # noqa: PTH111 - text, not yet a path
    kind = next(source for source in _SOURCES if source.names(text))
    return kind(
        text,
        node["checkpoint_select"],
        node["sha256"],
        config["runs"],
        config["tracking"]["uri"],
    )


def roles(config: Mapping[str, Any]) -> list[str]:
    """Returns the nodes that name weights which a run reads: ``teacher``, ``encoder``, both or none."""
    needs = needs_of(config)
    teacher = needs.trains and config["teacher"].get("name") is not None
    return ["teacher"] * teacher + ["encoder"] * needs.encoder


def weights_file(config: Mapping[str, Any], role: str = "teacher") -> Path | None:
    """Returns the file of weights that a node names, after fetching it if need be.

    Args:
        config: The resolved config.
        role: The node.

    Raises:
        UserError: It can't be had.
    """
    source = weights_source(config, role)
    return None if source is None else source.fetched()


def weights_at_hand(config: Mapping[str, Any]) -> bool:
    """Says whether all weights that a run and the runs before it read are there without fetching."""
    return not to_fetch(config)


def to_fetch(config: Mapping[str, Any]) -> list[str]:
    """Returns what names weights that must be fetched, for a run and the runs before it."""
    sources = [weights_source(each, role) for each in with_runs_before(config) for role in roles(each)]
    return [source.text for source in sources if source is not None and source.at_hand() is None]


def named_run(config: Mapping[str, Any]) -> RunFolder | None:
    """Returns the run folder that ``encoder.checkpoint`` names; ``None`` where it names something else."""
    source = weights_source(config, "encoder")
    folder = None if source is None else RunFolder(Path(source.text).absolute())
    return folder if folder is not None and folder.description().get("group") else None


def _mlflow_cache() -> Path:
    return cache_folder() / "mlflow"
