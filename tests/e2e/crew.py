"""Ranks that train one run together, each a process of its own: as a crew that stays, and as commands.

A crew joins once and then makes run after run, so that many runs cost little. What ends a process, or is
meant to find the ranks at different points, needs commands.
"""

import functools
import hashlib
import importlib
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from launching import Child, run_child
from torch import Tensor, distributed, nn

from gda.distillers import Term
from gda.distillers.term import TermInputs
from gda.errors import UserError

PATIENCE = 60.0  # a limit for what hangs, not a claim about speed
Config = Mapping[str, Any]

STEP = "gda.training.step.OptimizerStep.__call__"
EVALUATION = "gda.tasks.metrics.Metrics.update"
"""Called with every batch of an evaluation; first with those of the teacher's."""
SAVE = "gda.training.checkpoint.save"
BUILD = "gda.build._task"
BEGIN = "gda.tracking.run_folder.RunFolder.begin"
LOAD = "gda.training.checkpoint.load_last"
CHECK = "gda.app.require_runnable"
WAIT = "gda.app.from_main"
"""First called where all ranks wait for what rank 0 says of the config."""


@dataclass(frozen=True)
class Act:
    """Something that happens to a rank at a moment of its run.

    Attributes:
        does: The name of a signal, which the rank sends to itself; or `raises`, or `sleeps`.
        at: Dotted path of a function or method.
        count: At which call of it, from 1.
        rank: On this rank alone; null for all.
        before: Before the call instead of after it.
    """

    does: str
    at: str = STEP
    count: int = 1
    rank: int | None = None
    before: bool = False

    def happen(self) -> None:
        if self.does == "raises":
            raise ArithmeticError("broken on purpose")
        if self.does == "sleeps":
            time.sleep(1.0)
        else:
            os.kill(os.getpid(), signal.Signals[self.does])


@contextmanager
def acting(acts: Sequence[Act], rank: int) -> Iterator[None]:
    """Within the block, this rank's acts happen."""
    with ExitStack() as stack:
        for act in acts:
            if act.rank in (None, rank):
                stack.enter_context(_patch(act))
        yield


def _patch(act: Act) -> Any:
    path, _, name = act.at.rpartition(".")
    owner: Any
    try:
        owner = importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, class_name = path.rpartition(".")
        owner = getattr(importlib.import_module(module), class_name)
    call, calls = getattr(owner, name), itertools.count(1)

    @functools.wraps(call)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        due = next(calls) == act.count
        if due and act.before:
            act.happen()
        returned = call(*arguments, **options)
        if due and not act.before:
            act.happen()
        return returned

    return mock.patch.object(owner, name, wrapped)


class Forgetful(Term):
    """A term with weights, batch statistics and dropout of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10), nn.Dropout(0.5))

    def forward(self, inputs: TermInputs) -> Tensor:
        return (self.layers(inputs.student.logits) - 1).square().mean()


class Faulty(Term):
    """Fails on rank 1, in the second step of the second epoch, as `FAULT` says; it has a spare weight."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)

    def forward(self, inputs: TermInputs) -> Tensor:
        at, fault = inputs.progress, os.environ.get("FAULT")
        loss = inputs.student.logits.square().mean()
        if fault != "unused":
            loss = loss + 0 * self.spare.weight.sum() + 0 * self.spare.bias.sum()
        if (at.epoch, at.step, at.rank) == (1, 1, 1):
            if fault == "raise":
                raise ArithmeticError("broken on purpose")
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "nan":
                loss = loss * torch.nan
        return loss


FORGETFUL = "+distiller.terms.forgetful={_target_: crew.Forgetful, weight: 0.5}"
FAULTY = "+distiller.terms.faulty={_target_: crew.Faulty, weight: 0.5}"


class Meeting:
    """Where ranks find each other.

    The store is this process's, as it is torchrun's own, on a port that the kernel gives: none is chosen, let
    go, and hoped to be free still.
    """

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._store = distributed.TCPStore("127.0.0.1", 0, ranks, is_master=True, wait_for_workers=False)

    def environment(self, rank: int) -> dict[str, str]:
        """What torchrun tells a rank; nothing where there is one alone."""
        if self.ranks == 1:
            return {}
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }


# --- commands


def _run_rank(
    rank: int,
    environment: Mapping[str, str],
    acts: Sequence[Act],
    arguments: list[str],
    folder: str,
    log: str,
) -> None:
    os.environ.update(environment)
    with acting(acts, rank):
        run_child(arguments, folder, log, None, [])


class Ranks:
    """`python launch.py ARGUMENTS` in `folder`, once for each rank.

    Args:
        count: Number of ranks.
        arguments: The command line.
        folder: Working directory.
        acts: What happens to them.
        environment: Further variables.
    """

    def __init__(
        self,
        count: int,
        arguments: list[str],
        folder: Path,
        *acts: Act,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._meeting = Meeting(count)
        self.children: list[Child] = []
        for rank in range(count):
            log = folder / f"rank{rank}-{time.monotonic_ns()}.log"
            variables = {**self._meeting.environment(rank), **(environment or {})}
            process = multiprocessing.get_context("forkserver").Process(
                target=_run_rank, args=(rank, variables, acts, arguments, str(folder), str(log)), daemon=True
            )
            process.start()
            self.children.append(Child(process, log))

    def wait(self, as_launchers_do: bool = True) -> list[int]:
        """Waits for all, and returns their exit codes.

        Args:
            as_launchers_do: When one has failed, the others are told to end.
        """
        deadline, is_over = time.monotonic() + PATIENCE, not as_launchers_do
        while any(child.process.exitcode is None for child in self.children):
            if not is_over and any(child.process.exitcode for child in self.children):
                is_over = True
                for child in self.children:
                    with suppress(ProcessLookupError):
                        child.kill(signal.SIGTERM)
            if time.monotonic() > deadline:
                for child in self.children:
                    child.process.kill()
                raise AssertionError(f"not all ranks end:\n{self.output}")
            time.sleep(0.02)
        return [child.process.exitcode for child in self.children]  # type: ignore[misc]

    @property
    def output(self) -> str:
        """What all of them have said."""
        return "\n".join(child.output for child in self.children)


# --- crews


@dataclass(frozen=True)
class Outcome:
    """How a run has ended for one rank.

    Attributes:
        kind: `done`, or the name of the error.
        message: What the error says.
        exit_code: That of the command.
        folder: The run folder of a run that is done.
        weights: Hash of all that this rank has trained, batch statistics too.
    """

    kind: str
    message: str = ""
    exit_code: int = 0
    folder: Path | None = None
    weights: str = ""


def make(rank: int, config: Config, acts: Sequence[Act], environment: Mapping[str, str]) -> Outcome:
    """Makes a run as one of its ranks."""
    from gda.app import finish
    from gda.training.trainer import Trainer

    trained: list[Trainer] = []
    fit = Trainer.fit

    def watched(trainer: Trainer) -> Any:
        trained.append(trainer)
        return fit(trainer)

    with (
        mock.patch.object(Trainer, "fit", watched),
        mock.patch.dict(os.environ, environment),
        acting(acts, rank),
    ):
        try:
            done = finish(config)
        except UserError as error:
            return Outcome(type(error).__name__, str(error), error.exit_code)
    weights = hashlib.sha256()
    for trainer in trained:
        for module in (*trainer.task.modules.values(), trainer.average or nn.Module()):
            for name, value in module.state_dict().items():
                weights.update(name.encode())
                weights.update(value.contiguous().numpy().tobytes())
    return Outcome("done", folder=done.folder, weights=weights.hexdigest())


def _serve(rank: int, environment: Mapping[str, str], connection: Any, log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(descriptor), "w", buffering=1) for _ in range(2))
    os.environ.update(environment)
    from gda.cluster.process_group import joined
    from gda.ranks import is_main
    from gda.tracking.console import set_up_logging

    torch.set_num_threads(1)
    with joined("cpu"):
        set_up_logging(quiet=not is_main())
        while (job := connection.recv()) is not None:
            work, arguments = job
            connection.send(work(rank, *arguments))


class Crew:
    """Ranks that make one run after the other.

    Args:
        ranks: Their number.
        folder: Gets what they say.
    """

    def __init__(self, ranks: int, folder: Path) -> None:
        self.ranks = ranks
        self._meeting = Meeting(ranks)
        self._logs = [folder / f"crew-of-{ranks}-{rank}.log" for rank in range(ranks)]
        self._members: list[tuple[Any, Any]] = []
        context = multiprocessing.get_context("forkserver")
        for rank, log in enumerate(self._logs):
            ours, theirs = context.Pipe()
            arguments = (rank, self._meeting.environment(rank), theirs, str(log))
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._members.append((process, ours))

    @property
    def is_broken(self) -> bool:
        """Whether a rank is gone, or did not come back from a run."""
        return any(process.exitcode is not None for process, _ in self._members)

    def call(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Lets every rank call `work(rank, *arguments)`, and returns what each has returned."""
        for _, connection in self._members:
            connection.send((work, arguments))
        deadline, returned = time.monotonic() + PATIENCE, []
        for rank, (_, connection) in enumerate(self._members):
            try:
                assert connection.poll(max(0.0, deadline - time.monotonic())), "it hangs"
                returned.append(connection.recv())
            except (EOFError, ConnectionError, AssertionError) as error:
                self.dismiss(patience=0)
                raise AssertionError(f"rank {rank}: {error or 'it is gone'}\n{self.output}") from None
        return returned

    def make(self, config: Config, *acts: Act, environment: Mapping[str, str] | None = None) -> list[Outcome]:
        """Lets all ranks make one run, and returns how it has ended for each."""
        return self.call(make, self.joint(config), acts, environment or {})

    def joint(self, config: Config) -> dict[str, Any]:
        """The same run as one of all of them."""
        return {**config, "cluster": {**config["cluster"], "ranks_per_node": self.ranks}}

    @property
    def output(self) -> str:
        """What all of them have said so far."""
        return "\n".join(log.read_text() for log in self._logs if log.exists())

    def dismiss(self, patience: float = 5.0) -> None:
        """Ends them."""
        for _, connection in self._members:
            with suppress(OSError):
                connection.send(None)
        for process, _ in self._members:
            process.join(patience)
            if process.exitcode is None:
                process.kill()
                process.join()


class Crews:
    """Crews of any number of ranks; one that a test has broken is replaced for the next.

    Args:
        folder: Makes a folder for what a crew says.
    """

    def __init__(self, folder: Callable[[str], Path]) -> None:
        self._folder = folder
        self._crews: dict[int, Crew] = {}

    def of(self, ranks: int) -> Crew:
        """Returns the crew of so many."""
        if ranks not in self._crews or self._crews[ranks].is_broken:
            self._crews[ranks] = Crew(ranks, self._folder("crew"))
        return self._crews[ranks]

    def dismiss(self) -> None:
        """Ends them all."""
        for crew in self._crews.values():
            crew.dismiss()
