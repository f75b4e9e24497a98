"""Processes find each other by what torchrun or SLURM tells them; one on its own looks for nobody."""

import datetime
import multiprocessing
import os
import random
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gda.cluster import process_group
from gda.cluster.process_group import joined
from gda.errors import UserError
from gda.ranks import gather_objects, rank, rank_count

PATIENCE = 60.0
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SUBMITIT_EXECUTOR")
Outcome = tuple[str, Any]


@pytest.fixture(autouse=True)
def no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *(name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_")))):
        monkeypatch.setenv(name, "")  # so that it is put back, whoever changes it
        monkeypatch.delenv(name)


def slurm_step(task: int, tasks: int, job: int) -> dict[str, str]:
    """What SLURM tells a task of a step."""
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NTASKS": str(tasks),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(task),
    }


def torchrun(of_rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    return {
        "RANK": str(of_rank),
        "LOCAL_RANK": str(of_rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """A port that nobody has at the moment, outside of those that the kernel hands out by itself."""
    return next(
        port for port in iter(lambda: random.SystemRandom().randint(20000, 30000), 0) if is_free(port)
    )


def free_job() -> int:
    """The number of a job whose port is free: submitit derives one from the other."""
    return next(
        job
        for job in iter(lambda: random.SystemRandom().randint(1, 10**6), 0)
        if is_free(random.Random(str(job)).randint(20000, 60000))
    )


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def meet() -> Any:
    from torch import distributed

    with joined("cpu"):
        backend = distributed.get_backend()
        with joined("cpu"):  # who has joined stays
            met = (rank(), rank_count(), gather_objects(rank()))
        assert distributed.is_initialized()
    return *met, backend, distributed.is_initialized(), os.environ.get("SUBMITIT_EXECUTOR")


def fail_within() -> Any:
    """A rank that fails must not wait for the others on its way out, as the end of a group would."""
    from torch import distributed

    try:
        with joined("cpu"):
            if rank() == 1:
                raise ArithmeticError("broken on purpose")
            gather_objects(0)
    except ArithmeticError:
        return "failed", distributed.is_initialized()
    except RuntimeError:
        return "lost the other"
    return "met"


def _be(environment: Mapping[str, str], work: Callable[[], Any], patience: float, result: str) -> None:
    os.environ.update(environment)
    process_group._PATIENCE = datetime.timedelta(seconds=patience)
    start = time.monotonic()
    try:
        outcome: Outcome = ("met", work())
    except UserError as error:
        outcome = ("UserError", str(error))
    except BaseException:
        outcome = ("traceback", traceback.format_exc())
    Path(result).write_text(repr((*outcome, time.monotonic() - start)))
    os._exit(0)  # as a process ends that does not clean up


def _fork(jobs: list[tuple[Mapping[str, str], Callable[[], Any], float, str]]) -> None:
    import torch.distributed  # once for all

    assert torch.distributed.is_available()
    children = [
        multiprocessing.get_context("fork").Process(target=_be, args=job, daemon=True) for job in jobs
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()


Start = Callable[..., list[list[Outcome]]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Outcome]]:
    """How each process of each meeting fared; they are all forked at once, by one that has imported torch."""
    folder = tmp_path_factory.mktemp("meetings")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {name: free_port() for name in ("torchrun", "failing", "nobody", "absent")}
        job = free_job()
        lonely = torchrun(1, 2, ports["nobody"])
        meetings: dict[str, tuple[list[dict[str, str]], Callable[[], Any], float]] = {
            "torchrun": ([torchrun(each, 2, ports["torchrun"]) for each in (0, 1)], meet, PATIENCE),
            "slurm": ([slurm_step(each, 2, job) for each in (0, 1)], meet, PATIENCE),
            "failing": ([torchrun(each, 2, ports["failing"]) for each in (0, 1)], fail_within, PATIENCE),
            "nobody": ([lonely], meet, 2),
            "absent": ([torchrun(0, 2, ports["absent"])], meet, 2),
            "taken": ([torchrun(0, 2, taken.getsockname()[1])], meet, 2),
            "untold": ([{"WORLD_SIZE": "2"}], meet, 2),
        }
        jobs = [
            (environment, work, patience, str(folder / f"{name}{number}"))
            for name, (environments, work, patience) in meetings.items()
            for number, environment in enumerate(environments)
        ]
        process = multiprocessing.get_context("spawn").Process(target=_fork, args=(jobs,))
        with pytest.MonkeyPatch.context() as patch:
            for name in list(os.environ):
                if name in NAMES or name.startswith(("SLURM_", "TORCHELASTIC_")):
                    patch.delenv(name)
            process.start()
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
    found: dict[str, list[Outcome]] = {}
    for name, (environments, *_) in meetings.items():
        for number in range(len(environments)):
            path = folder / f"{name}{number}"
            outcome = eval(path.read_text()) if path.exists() else ("hangs", "", PATIENCE)
            found.setdefault(name, []).append(outcome)
    return found


@pytest.mark.parametrize("how", ["torchrun", "slurm"])
def test_two_processes_meet_and_part(how: str, outcomes: dict[str, list[Outcome]]) -> None:
    assert [each[:2] for each in outcomes[how]] == [
        ("met", (number, 2, [0, 1], "gloo", False, None)) for number in (0, 1)
    ]


def test_a_rank_that_fails_does_not_wait_for_the_others(outcomes: dict[str, list[Outcome]]) -> None:
    assert [each[:2] for each in outcomes["failing"]] == [
        ("met", "lost the other"),
        ("met", ("failed", True)),
    ]


@pytest.mark.parametrize("name", ["nobody", "absent", "taken"])
def test_others_that_can_not_be_reached_are_named(name: str, outcomes: dict[str, list[Outcome]]) -> None:
    ((kind, said, _),) = outcomes[name]
    assert kind == "UserError", said
    number = 1 if name == "nobody" else 0
    assert f"Process {number} of 2 could not join the others at 127.0.0.1:" in said


def test_a_process_that_is_told_too_little_says_so(outcomes: dict[str, list[Outcome]]) -> None:
    ((kind, said, _),) = outcomes["untold"]
    assert kind == "UserError", said
    assert "RANK" in said


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "1", "RANK": "0"},
        # a shell within an allocation of several tasks, and a step of one task
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    ],
)
def test_one_process_on_its_own_joins_nothing(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_group(*_: Any, **__: Any) -> None:
        raise AssertionError("it joins")

    from torch import distributed

    monkeypatch.setattr(distributed, "init_process_group", no_group)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with joined():
        assert (rank(), rank_count()) == (0, 1)
    assert {name: os.environ[name] for name in environment} == environment


def test_torchrun_within_a_slurm_step_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task may start several processes itself: then SLURM's number of tasks is not theirs."""
    for name, value in {**slurm_step(1, 2, 7), **torchrun(3, 4, 1)}.items():
        monkeypatch.setenv(name, value)
    process_group._describe_slurm_step()
    assert {name: os.environ[name] for name in NAMES[:3]} == {
        "RANK": "3",
        "LOCAL_RANK": "3",
        "WORLD_SIZE": "4",
    }


def test_a_slurm_step_is_told_in_torchruns_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in slurm_step(1, 2, 7).items():
        monkeypatch.setenv(name, value)
    process_group._describe_slurm_step()
    told = {name: os.environ.get(name) for name in NAMES}
    assert (told["RANK"], told["LOCAL_RANK"], told["WORLD_SIZE"]) == ("1", "1", "2")
    assert told["MASTER_ADDR"] == "localhost"
    assert told["SUBMITIT_EXECUTOR"] is None, "as it was"
    assert 1024 < int(told["MASTER_PORT"] or 0) < 65536


def test_submitits_own_variable_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**slurm_step(0, 2, 7), "SUBMITIT_EXECUTOR": "slurm"}.items():
        monkeypatch.setenv(name, value)
    process_group._describe_slurm_step()
    assert os.environ["SUBMITIT_EXECUTOR"] == "slurm"
