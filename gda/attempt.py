"""One attempt at a run, in a folder that this process owns."""

import logging
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import distributed

from gda.build import InputFiles, build_run
from gda.config.identity import Identity
from gda.config.inputs import weights_identity
from gda.config.loss_nodes import uses_teacher
from gda.config.schema import Tracking
from gda.config.stages import needs_of
from gda.description import description_of, figure_of
from gda.errors import RankLost, RunInterrupted, RunPreempted, UserError
from gda.ranks import StoppedByMain, from_main, is_main, rank_count
from gda.report.single import write_run_report
from gda.tracking.git_state import write_working_diff
from gda.tracking.mlflow_mirror import MLflowMirror
from gda.tracking.mlflow_store import default_uri
from gda.tracking.run_folder import RunFolder, slurm_job_id
from gda.training.checkpoint import LAST
from gda.training.interruption import Stopped, StopRequest, interruptible
from gda.training.result import in_words
from gda.training.startup import Startup

logger = logging.getLogger("gda")

Config = Mapping[str, Any]

STARTUP = Startup()
"""How long this process took to its first training step."""

WITHOUT_A_WORD = "another process of this run ended without a word (killed, or out of memory)"


def attempt(config: Config, identity: Identity, folder: RunFolder, files: InputFiles, title: str) -> None:
    """Trains or measures to the end, from wherever an earlier attempt stopped.

    Args:
        config: The resolved config, free of faults.
        identity: What it is.
        folder: Its run folder, which rank 0 owns.
        files: The weights that it reads.
        title: What it is called on the terminal.

    Raises:
        RunInterrupted: A signal stopped the run; its folder is marked so.
        UserError: The run failed; its folder says why.
    """
    started = time.perf_counter()
    from_main(lambda: _require_same_teacher(config, folder))
    with ExitStack() as stack:
        stop = stack.enter_context(interruptible())
        if rank_count() > 1:
            stack.enter_context(stop.deferred())  # one that stopped on its own would be missed by the others
        stack.enter_context(folder.logged())
        mirror = None
        try:
            epochs = config["recipe"]["epochs"] if needs_of(config).trains else 1
            # The others wait: a failure of theirs is written down after the beginning.
            from_main(lambda: folder.begin(config, description_of(config, identity, files), epochs))
            if is_main():
                write_working_diff(folder.path)
            mirror = _mirror(config, folder)
            STARTUP.mark("checks")
            work = build_run(config, folder, files, title, mirror, stop, _first_step(title, mirror))
            STARTUP.mark("data and models")
            folder.finish(work.fit())
        except KeyboardInterrupt as error:
            raise _interrupted(error, folder, title) from None
        except Exception as error:
            raise _failed(error, folder, title, stop) from error
        else:
            if is_main():
                write_run_report(folder.path)
        finally:
            if mirror is not None:
                mirror.start().close()
    result = from_main(lambda: folder.status()["result"])
    spent = time.perf_counter() - started
    logger.info("%s: %s in %.1f s, %s", title, _figures(config, result), spent, folder)


def _interrupted(error: KeyboardInterrupt, folder: RunFolder, title: str) -> RunInterrupted:
    """Marks a run that a signal has stopped; a cluster's signal, unlike Ctrl-C, comes with a way back."""
    number = error.signal if isinstance(error, Stopped) else signal.SIGINT
    if slurm_job_id() is None or number == signal.SIGINT:
        folder.interrupt()
        return RunInterrupted(f"Interrupted. {title} is kept in {folder}; the same command continues it.")
    folder.preempt()
    name = signal.Signals(number).name
    return RunPreempted(f"{name}: {title} is saved in {folder}, and goes on when its job comes back.", number)


def _failed(error: Exception, folder: RunFolder, title: str, stop: StopRequest) -> UserError:
    """Marks a run failed, and returns what to tell the user.

    When a process of a run has failed, the others lose their connection to it: its own error stands in the
    run's status and log, and theirs say nothing more. After Ctrl-C it has not failed, but stopped first.
    """
    if isinstance(error, StoppedByMain):
        return error
    if is_lost_connection(error):
        if stop.noted == signal.SIGINT:  # with SIGTERM a launcher ends what is left of a run that has failed
            return _interrupted(Stopped(stop.noted), folder, title)
        if _another_has_said_why(folder):
            return RankLost(f"{title} failed in another process: see {folder.path / 'run.log'}.")
        lost = RankLost(f"{title}: {WITHOUT_A_WORD}.")
        lost.__cause__ = error
        folder.fail(lost)
        return lost
    folder.fail(error)
    if isinstance(error, UserError):
        return error
    return UserError(
        f"{title} failed: {type(error).__name__}: {error}. The traceback is in "
        f"{folder.path / 'run.log'}; the same command tries again."
    )


def is_lost_connection(error: BaseException) -> bool:
    """Says whether an error is what a process sees of another one that has ended."""
    if rank_count() == 1 or isinstance(error, UserError):
        return False
    words = ("connection", "peer", "gloo", "nccl", "socket", "timed out")
    known = isinstance(error, distributed.DistError)
    return known or (isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words))


def _another_has_said_why(folder: RunFolder) -> bool:
    """Waits a moment for the process that failed to write down its error."""
    for _ in range(20):
        if folder.status().get("state") == "failed":
            return True
        time.sleep(0.1)
    return False


def _first_step(title: str, mirror: MLflowMirror | None) -> Callable[[], None]:
    """Returns what is to be done after the first training step.

    The mirror starts only then, because importing MLflow would hold the step up for seconds. And the log
    says how long this process took until its first step.
    """

    def begun() -> None:
        if mirror is not None:
            mirror.start()
        if not STARTUP.is_told:
            STARTUP.mark("first step")
            STARTUP.is_told = True
            level = logging.DEBUG if slurm_job_id() is None else logging.INFO
            logger.log(level, "%s: first training step after %s", title, STARTUP.in_words())

    return begun


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
    if not tracking.enabled or not is_main():
        return None
    uri = tracking.uri or default_uri(Path(config["runs"]).absolute())
    return MLflowMirror(folder.path, uri, tracking.experiment)


def _figures(config: Config, result: Mapping[str, Any]) -> str:
    figure = figure_of(config)
    name = f"test_{figure.name}"
    text = f"test {in_words(figure.name)} {result['last'][name]:.2f} %"
    if result["best"] is not None and name in result["best"]:
        text += f" (best validation epoch {result['best']['epoch']}: {result['best'][name]:.2f} %)"
    return text
