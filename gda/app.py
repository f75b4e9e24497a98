"""One composed config becomes one finished run."""

import errno
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from gda.build import build_trainer
from gda.config.baselines import teacher_run
from gda.config.check import check, fetch_weights, resolved
from gda.config.faults import ConfigFaults
from gda.config.identity import Identity
from gda.config.inputs import facts_of, identify_run, run_path, weights_identity
from gda.config.loss_nodes import uses_teacher
from gda.config.schema import Tracking
from gda.config.weights import AUTO, weights_at_hand, weights_file
from gda.errors import RunInterrupted, UserError
from gda.interchange.model_input import ModelInput
from gda.report.single import write_run_report
from gda.tracking.console import set_up_logging
from gda.tracking.mlflow_mirror import MLflowMirror
from gda.tracking.mlflow_store import default_uri
from gda.tracking.provenance import collect_provenance
from gda.tracking.run_folder import Row, RunFolder
from gda.training.checkpoint import LAST
from gda.training.interruption import interruptible

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
        finish(plain)
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


def finish(config: Config, is_input: bool = False) -> FinishedRun:
    """Makes sure that a run is finished, doing only what is missing.

    Args:
        config: The resolved config.
        is_input: Whether the run is another's teacher. Several runs may ask for it at once: one
            makes it, the others wait.

    Raises:
        ConfigFaults: The config can't be run.
        RunInterrupted: Ctrl-C was pressed; the run is resumable.
        UserError: The run failed.
    """
    require_runnable(config)
    identity = identify_run(config)
    what = f"teacher {config['student']['name']}" if is_input else identity.label
    title = f"{what} seed {config['seed']}"
    folder = RunFolder(run_path(config, identity))
    # A teacher is there to be loaded: without its weights it is made again.
    usable = not is_input or (folder.path / LAST).exists()
    if folder.is_done() and usable:
        logger.log(logging.DEBUG if is_input else logging.INFO, "%s: finished before, %s", title, folder)
        return FinishedRun(folder.path, identity, folder.status()["result"], was_done=True)
    weights = _teacher_weights(config)
    with folder.owned(wait=is_input, on_wait=logger.info):
        if not (folder.is_done() and usable):  # another process may have finished it while this one waited
            _train(config, identity, folder, weights, title)
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
    if not weights_at_hand(config):
        return f"the weights will be fetched from {config['teacher']['checkpoint']}, and checked then"
    return f"{identify_run(config).name}, seed {config['seed']}"


def _teacher_weights(config: Config) -> Path | None:
    """Returns the file with the teacher's weights, after training the teacher if that is missing."""
    teacher = config["teacher"]
    if teacher["name"] is None or teacher["checkpoint"] is None:
        return None
    if teacher["checkpoint"] != AUTO:
        return weights_file(config)
    made = finish(teacher_run(config), is_input=True)
    return made.folder / f"{teacher['checkpoint_select']}.pt"


def _train(config: Config, identity: Identity, folder: RunFolder, weights: Path | None, title: str) -> None:
    started = time.perf_counter()
    _require_same_teacher(config, folder)
    with interruptible(), folder.logged():
        mirror = None
        try:
            folder.begin(config, _description(config, identity, weights), config["recipe"]["epochs"])
            mirror = _mirror(config, folder)
            folder.finish(build_trainer(config, folder, weights, title, mirror).fit())
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
    logger.info("%s: %s in %.1f s, %s", title, _figures(result), time.perf_counter() - started, folder)


def _require_same_teacher(config: Config, folder: RunFolder) -> None:
    """Keeps plain training from going on with another teacher than its fidelity figures began with.

    Plain training is one run whatever the teacher, which only measures it.
    """
    if not (folder.path / LAST).exists() or uses_teacher(config):
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


def _description(config: Config, identity: Identity, weights: Path | None) -> Row:
    known = ModelInput.from_config(config)
    return {
        "study": config["study"],
        **facts_of(config, identity),
        "selection": "validation" if config["dataset"]["validation"] else "none",
        "teacher_weights": None if weights is None else str(weights),
        "teacher_identity": weights_identity(config, also_unused=True),
        "teacher_run": _teacher_facts(config),
        "input": None if known is None else asdict(known),
        **collect_provenance(),
    }


def _teacher_facts(config: Config) -> Row | None:
    """Says which run the teacher's weights come from, where they come from one that is made here."""
    teacher = config["teacher"]
    if teacher["name"] is None or teacher["checkpoint"] != AUTO:
        return None
    identity = identify_run(teacher_run(config))
    return {"group": identity.group, "seed": teacher["seed"], "select": teacher["checkpoint_select"]}


def _figures(result: Mapping[str, Any]) -> str:
    text = f"test top-1 {result['last']['test_top1']:.2f} %"
    if result["best"] is not None:
        text += f" (best validation epoch {result['best']['epoch']}: {result['best']['test_top1']:.2f} %)"
    return text
