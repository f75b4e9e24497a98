"""Ranks that train one run together, each a process of its own: as commands, and as a crew that stays.

A crew joins once and then makes run after run, so that many runs cost little. What ends a process, or is
meant to find the others at different points, needs commands.
"""

import functools
import importlib
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
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
STEP = "gda.training.step.OptimizerStep.__call__"
EVALUATED = "gda.tasks.metrics.Metrics.update"
"""Called once a batch of each evaluation."""
SAVED = "gda.training.checkpoint.save"


@dataclass(frozen=True)
class Act:
    """Something that happens to a rank at a moment of its run.

    Attributes:
        does: The name of a signal, which the rank sends to itself; or `raises`; or `sleeps`.
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
            time.sleep(1.5)
        else:
            os.kill(os.getpid(), signal.Signals[self.does])


@contextmanager
def acting(acts: Sequence[Act], rank: int) -> Iterator[None]:
    """Within the block, this rank's acts happen."""
    with contextmanager_of([_patch(act) for act in acts if act.rank in (None, rank)]):
        yield


@contextmanager
def contextmanager_of(patches: Sequence[Any]) -> Iterator[None]:
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in reversed(patches):
            patch.stop()


def _patch(act: Act) -> Any:
    owner, _, name = act.at.rpartition(".")
    try:
        found: Any = importlib.import_module(owner)
    except ModuleNotFoundError:
        module, _, class_name = owner.rpartition(".")
        found = getattr(importlib.import_module(module), class_name)
    call, calls = getattr(found, name), itertools.count(1)

    @functools.wraps(call)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        due = next(calls) == act.count
        if due and act.before:
            act.happen()
        returned = call(*arguments, **options)
        if due and not act.before:
            act.happen()
        return returned

    return mock.patch.object(found, name, wrapped)


class Forgetful(Term):
    """A term with weights, batch statistics and dropout of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10), nn.Dropout(0.5))

    def forward(self, inputs: TermInputs) -> Tensor:
        return (self.layers(inputs.student.logits) - 1).square().mean()


FORGETFUL = "+distiller.terms.forgetful={_target_: crew.Forgetful, weight: 0.5}"


class Meeting:
    """Where ranks find each other. The store is this process's, as torchrun's is its own: no port is
    chosen, let go, and hoped to be free still."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._store = distributed.TCPStore("127.0.0.1", 0, ranks, is_master=True, wait_for_workers=False)

    def environment(self, rank: int) -> dict[str, str]:
        """What torchrun tells a rank."""
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


def run_rank(
    rank: int,
    environment: Mapping[str, str],
    acts: Sequence[Act],
    arguments: list[str],
    folder: str,
    log: str,
) -> None:
    """A rank as a command: `python launch.py ARGUMENTS` in `folder`."""
    os.environ.update(environment)
    with acting(acts, rank):
        run_child(arguments, folder, log, None, [])


def start_ranks(
    count: int,
    arguments: list[str],
    folder: Path,
    acts: Sequence[Act] = (),
    environment: Mapping[str, str] | None = None,
) -> list[Child]:
    """Starts `python launch.py ARGUMENTS` once for each rank."""
    meeting, children = Meeting(count), []
    for rank in range(count):
        log = folder / f"rank{rank}-{time.monotonic_ns()}.log"
        whole = {**meeting.environment(rank), **(environment or {})}
        process = multiprocessing.get_context("forkserver").Process(
            target=run_rank, args=(rank, whole, tuple(acts), arguments, str(folder), str(log))
        )
        process.start()
        children.append(Child(process, log))
    children[0].meeting = meeting  # type: ignore[attr-defined]  # lives as long as its ranks
    return children


@dataclass(frozen=True)
class Outcome:
    """How a run has ended for one rank.

    Attributes:
        kind: `done`, or the name of the error.
        folder: The run folder of a run that is done.
        message: What the error says.
        exit_code: That of the command.
    """

    kind: str
    folder: Path | None = None
    message: str = ""
    exit_code: int = 0


def _make(
    config: Mapping[str, Any], acts: Sequence[Act], environment: Mapping[str, str], rank: int
) -> Outcome:
    from gda.app import finish

    with mock.patch.dict(os.environ, environment), acting(acts, rank):
        try:
            return Outcome("done", finish(config).folder)
        except UserError as error:
            return Outcome(type(error).__name__, None, str(error), error.exit_code)


def _serve(rank: int, environment: Mapping[str, str], connection: Connection, log: str) -> None:
    """A member of a crew."""
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
            config, acts, more = job
            connection.send(_make(config, acts, more, rank))


class Crew:
    """Ranks that make one run after the other.

    Args:
        ranks: Their number.
        folder: Gets what they say.
    """

    def __init__(self, ranks: int, folder: Path) -> None:
        self.ranks = ranks
        self._meeting = Meeting(ranks)
        self._logs = [folder / f"crew{rank}.log" for rank in range(ranks)]
        self._members, self._connections = [], []
        context = multiprocessing.get_context("forkserver")
        for rank, log in enumerate(self._logs):
            ours, theirs = context.Pipe()
            arguments = (rank, self._meeting.environment(rank), theirs, str(log))
            member = context.Process(target=_serve, args=arguments, daemon=True)
            member.start()
            theirs.close()
            self._members.append(member)
            self._connections.append(ours)

    def make(
        self,
        config: Mapping[str, Any],
        *acts: Act,
        environment: Mapping[str, str] | None = None,
    ) -> list[Outcome]:
        """Lets all ranks make one run, and returns how it has ended for each."""
        for connection in self._connections:
            connection.send((config, acts, environment or {}))
        outcomes = []
        for rank, connection in enumerate(self._connections):
            try:
                assert connection.poll(PATIENCE), f"rank {rank} hangs:\n{self.output}"
                outcomes.append(connection.recv())
            except (EOFError, ConnectionError):
                raise AssertionError(f"rank {rank} is gone:\n{self.output}") from None
        return outcomes

    @property
    def output(self) -> str:
        return "\n".join(log.read_text() for log in self._logs if log.exists())

    def dismiss(self) -> None:
        for connection in self._connections:
            try:
                connection.send(None)
            except OSError:
                pass
        for member in self._members:
            member.join(5)
            if member.exitcode is None:
                member.kill()
                member.join()


Make = Callable[..., list[Outcome]]
