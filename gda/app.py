"""One composed config becomes one finished run."""

import errno
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from gda.build import InputFiles, build_run
from gda.config.check import check, fetch_weights, resolved
from gda.config.faults import ConfigFaults
from gda.config.identity import Identity
from gda.config.inputs import identify_run, run_path, run_title, weights_identity
from gda.config.loss_nodes import uses_teacher
from gda.config.schema import Tracking
from gda.config.stages import needs_of, runs_before
from gda.config.weights import roles, to_fetch, weights_at_hand, weights_file
from gda.description import description_of, figure_of
from gda.errors import RunInterrupted, UserError
from gda.report.publish import publish
from gda.report.single import write_run_report
from gda.tracking.console import set_up_logging
from gda.tracking.mlflow_mirror import MLflowMirror
from gda.tracking.mlflow_store import default_uri
from gda.tracking.run_folder import Row, RunFolder
from gda.training.checkpoint import LAST
from gda.training.interruption import interruptible
from gda.training.result import in_words

logger = logging.getLogger("gda")

Config = Mapping[str, Any]


@dataclass(frozen=True)
class FinishedRun:
    """A run that is done.

    Attributes:
        folder: Its run folder.
        identity: What it is.
        result: Its result (:func:`gda.training.result.result_of`).
        was_done: Whether it had been finished before, by an earlier command.
    """

    folder: Path
    identity: Identity
    result: Row
    was_done: bool


def run(config: DictConfig) -> None:
    """Runs what the command line composed; the only entry of ``launch.py``.

    Raises:
        SystemExit: Something is wrong with the config, or the run failed or was interrupted. The
            reason stands on standard error, without a traceback.
    """
    set_up_logging()
    try:
        plain = resolved(config)
        if plain.get("check") is True:
            faults = check(plain)
            if faults:
                raise ConfigFaults(faults)
            logger.info("Nothing is wrong with this config: %s", _named(plain))
            return
        finished = finish(plain)
        if plain["report"]:
            publish(finished.folder.parent.parent)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        advice = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "put that right"
        sys.stderr.write(f"{error.filename or 'A file'} can't be written: {error.strerror or error}. ")
        sys.stderr.write(f"Nothing was lost: {advice} (or set runs=FOLDER), then issue the command again.\n")
        raise SystemExit(UserError.exit_code) from None
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. What was finished is kept; the same command continues.\n")
        raise SystemExit(RunInterrupted.exit_code) from None


def finish(config: Config, is_input: bool = False, needed: str = LAST) -> FinishedRun:
    """Makes sure that a run is finished, doing only what is missing.

    Args:
        config: The resolved config.
        is_input: Whether another run builds on it, as on a teacher. Several may ask for it at once: one
            makes it, the others wait.
        needed: The checkpoint that an input is there for: without it the run is made again.

    Raises:
        ConfigFaults: The config can't be run.
        RunInterrupted: Ctrl-C was pressed; the run is resumable.
        UserError: The run failed.
    """
    require_runnable(config)
    identity = identify_run(config)
    title = run_title(config, identity, is_input)
    folder = RunFolder(run_path(config, identity))

    def is_usable() -> bool:
        return folder.is_done() and (not is_input or (folder.path / needed).exists())

    if is_usable():
        logger.log(logging.DEBUG if is_input else logging.INFO, "%s: finished before, %s", title, folder)
        return FinishedRun(folder.path, identity, folder.status()["result"], was_done=True)
    files = _input_files(config)
    with folder.owned(wait=is_input, on_wait=logger.info):
        if not is_usable():  # another process may have finished it while this one waited
            _work(config, identity, folder, files, title)
    return FinishedRun(folder.path, identity, folder.status()["result"], was_done=False)


def require_runnable(config: Config) -> None:
    """Checks a config whole; then fetches the weights that it names, and checks those.

    Raises:
        ConfigFaults: The config can't be run.
    """
    faults = check(config)
    if not faults and not weights_at_hand(config):
        faults = fetch_weights([config]) or check(config)
    if faults:
        raise ConfigFaults(faults)


def _named(config: Config) -> str:
    """Names a run that has been checked only."""
    fetched = to_fetch(config)
    if fetched:
        return f"the weights will be fetched from {' and '.join(dict.fromkeys(fetched))}, and checked then"
    return f"{identify_run(config).name}, seed {config['seed']}"


def _input_files(config: Config) -> InputFiles:
    """Returns the files of the weights that a run reads, after making the runs that are missing."""
    files: dict[str, Path | None] = {}
    before = runs_before(config)
    for role in roles(config):
        if role in before:
            needed = f"{config[role]['checkpoint_select']}.pt"
            files[role] = finish(before[role], is_input=True, needed=needed).folder / needed
        else:
            files[role] = weights_file(config, role)
    return InputFiles(**files)


def _work(config: Config, identity: Identity, folder: RunFolder, files: InputFiles, title: str) -> None:
    """Trains or measures, in a folder that this process owns."""
    started = time.perf_counter()
    _require_same_teacher(config, folder)
    with interruptible(), folder.logged():
        mirror = None
        try:
            epochs = config["recipe"]["epochs"] if needs_of(config).trains else 1
            folder.begin(config, description_of(config, identity, files), epochs)
            mirror = _mirror(config, folder)
            folder.finish(build_run(config, folder, files, title, mirror).fit())
        except KeyboardInterrupt:
            folder.interrupt()
            raise RunInterrupted(
                f"Interrupted. {title} is kept in {folder}; the same command continues it."
            ) from None
        except Exception as error:
            folder.fail(error)
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{title} failed: {type(error).__name__}: {error}. The traceback is in "
                f"{folder.path / 'run.log'}; the same command tries again."
            ) from error
        else:
            write_run_report(folder.path)
        finally:
            if mirror is not None:
                mirror.close()
    result = folder.status()["result"]
    spent = time.perf_counter() - started
    logger.info("%s: %s in %.1f s, %s", title, _figures(config, result), spent, folder)


def _require_same_teacher(config: Config, folder: RunFolder) -> None:
    """Keeps plain training from going on with another teacher than its fidelity figures began with.

    Plain training is one run whatever the teacher, which only measures it.
    """
    if not (folder.path / LAST).exists() or uses_teacher(config) or not needs_of(config).trains:
        return
    before = folder.description().get("teacher_identity")
    if before != weights_identity(config, also_unused=True):
        name = folder.description().get("teacher")
        raise UserError(
            f"{folder} holds plain training that was begun with teacher={name or 'none'}, against which its "
            "agreement is measured, and is not finished. Finish it with that teacher, or remove the folder."
        )


def _mirror(config: Config, folder: RunFolder) -> MLflowMirror | None:
    tracking = Tracking(**config["tracking"])
    if not tracking.enabled:
        return None
    uri = tracking.uri or default_uri(Path(config["runs"]).absolute())
    return MLflowMirror(folder.path, uri, tracking.experiment).start()


def _figures(config: Config, result: Mapping[str, Any]) -> str:
    figure = figure_of(config)
    name = f"test_{figure.name}"
    text = f"test {in_words(figure.name)} {result['last'][name]:.2f} %"
    if result["best"] is not None and name in result["best"]:
        text += f" (best validation epoch {result['best']['epoch']}: {result['best'][name]:.2f} %)"
    return text
