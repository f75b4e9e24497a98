"""One composed config becomes one finished run."""

import errno
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from gda.attempt import STARTUP, WITHOUT_A_WORD, attempt, is_lost_connection
from gda.build import InputFiles
from gda.cluster.process_group import joined
from gda.config.check import check, fetch_weights, resolved
from gda.config.faults import ConfigFaults
from gda.config.identity import Identity
from gda.config.inputs import identify_run, run_path, run_title
from gda.config.ranks import ranks_of
from gda.config.stages import runs_before
from gda.config.weights import roles, to_fetch, weights_at_hand, weights_file
from gda.errors import RunInterrupted, UserError
from gda.ranks import StoppedByMain, from_main, is_main, rank_count
from gda.report.publish import publish
from gda.tracking.console import set_up_logging
from gda.tracking.run_folder import Row, RunFolder
from gda.tracking.silent_run_folder import SilentRunFolder
from gda.training.checkpoint import LAST

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
    try:
        plain = resolved(config)
        with joined(_device(plain)):
            set_up_logging(quiet=not is_main())
            if plain.get("check") is True:
                faults = check(plain)
                if faults:
                    raise ConfigFaults(faults)
                logger.info("Nothing is wrong with this config: %s", _named(plain))
                return
            finished = finish(plain)
            if plain["report"] and is_main():
                publish(finished.folder.parent.parent)
    except StoppedByMain as error:
        raise SystemExit(error.exit_code) from None  # rank 0 says why
    except RunInterrupted as error:
        if is_main():
            sys.stderr.write(f"{error}\n")
        raise SystemExit(error.exit_code) from None
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        sys.stderr.write(f"{unwritable(error)}\n")
        raise SystemExit(UserError.exit_code) from None
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. What was finished is kept; the same command continues.\n")
        raise SystemExit(RunInterrupted.exit_code) from None
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        sys.stderr.write(f"{WITHOUT_A_WORD[0].upper()}{WITHOUT_A_WORD[1:]}.\n")
        raise SystemExit(UserError.exit_code) from None


def unwritable(error: OSError) -> str:
    """Says what to do about a file that can't be written."""
    advice = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "put that right"
    return (
        f"{error.filename or 'A file'} can't be written: {error.strerror or error}. "
        f"Nothing was lost: {advice} (or set runs=FOLDER), then issue the command again."
    )


def finish(config: Config, is_input: bool = False, needed: Sequence[str] = (LAST,)) -> FinishedRun:
    """Makes sure that a run is finished, doing only what is missing.

    Where several processes train together, all of them call it.

    Args:
        config: The resolved config.
        is_input: Whether another run builds on it, as on a teacher. Several may ask for it at once: one
            makes it, the others wait.
        needed: The checkpoints that an input is there for: without them the run is made again.

    Raises:
        ConfigFaults: The config can't be run.
        RunInterrupted: A signal stopped the run, which is resumable; :class:`gda.errors.RunPreempted` where a
            cluster sent it.
        UserError: The run failed.
    """
    STARTUP.mark("imports")
    from_main(lambda: require_runnable(config))
    from_main(lambda: _require_ranks(config))
    identity = identify_run(config)
    title = run_title(config, identity, is_input)
    path = run_path(config, identity)
    folder = RunFolder(path) if is_main() else SilentRunFolder(path)

    def is_usable() -> bool:
        return folder.is_done() and (not is_input or all((folder.path / name).exists() for name in needed))

    if from_main(is_usable):
        logger.log(logging.DEBUG if is_input else logging.INFO, "%s: finished before, %s", title, folder)
        return FinishedRun(folder.path, identity, folder.status()["result"], was_done=True)
    files = _input_files(config)
    with ExitStack() as stack:
        from_main(lambda: stack.enter_context(folder.owned(wait=is_input, on_wait=logger.info)))
        if not from_main(is_usable):  # another process may have finished it while this one waited
            attempt(config, identity, folder, files, title)
    result = from_main(lambda: folder.status()["result"])
    return FinishedRun(folder.path, identity, result, was_done=False)


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


def _require_ranks(config: Config) -> None:
    """Keeps a run from being made by another number of processes than its identity says."""
    asked = ranks_of(config)
    if asked != rank_count():
        raise UserError(
            f"This run is one of {asked} processes (cluster.nodes times cluster.ranks_per_node), and "
            f"{rank_count()} were started. cluster=local_ddp and cluster=slurm_ddp start as many as they say."
        )


def _device(config: Config) -> str:
    """Returns the device that a config asks for, which may have faults yet."""
    trainer = config.get("trainer")
    return str(trainer.get("device", "auto")) if isinstance(trainer, Mapping) else "auto"


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
            files[role] = finish(before[role], is_input=True, needed=(needed,)).folder / needed
        else:
            files[role] = weights_file(config, role)
    return InputFiles(**files)
