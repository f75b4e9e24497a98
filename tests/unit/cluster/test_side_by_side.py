"""The real thing, with a quick script in the place of training."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from frozen import frozen, planned, status

from gda.cluster.frozen_job import FrozenJob
from gda.cluster.plan import PlannedRun
from gda.cluster.processes import child_run
from gda.cluster.processes.machine_share import MachineShare, cpu_count, shares, visible_gpus
from gda.cluster.processes.side_by_side import SideBySideEnd, run_side_by_side
from gda.errors import UserError
from gda.tracking.run_folder import RunFolder

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
from gda.cluster.frozen_job import read_job
from gda.errors import UserError
from gda.tracking.run_folder import RunFolder

run = read_job(Path(sys.argv[1])).runs[int(sys.argv[2])]
folder = RunFolder(run.folder)
journal = os.open(run.config["journal"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def note(what):
    os.write(journal, f"{what} {run.folder.name}\\n".encode())
act = run.config["act"]
if act == "crash":
    print("the last words")
    sys.exit(1)
def stop(number, frame):
    if act == "abrupt":
        sys.exit(1)
    if act != "deaf":
        note(signal.Signals(number).name)
        folder.interrupt()
        sys.exit(130)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
    signal.signal(number, stop)
with folder.owned():
    folder.begin({}, {"figure": "top1"}, 1)
    (run.folder / "gpus").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    note("begin")
    if act == "fail":
        folder.fail(UserError("no luck\\nand more"))
        sys.exit(1)
    if act == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "leave":
        sys.exit(0)
    if act == "pair":  # until its partner has begun, too
        while Path(run.config["journal"]).read_text().count("begin") < run.config["begun"]:
            time.sleep(0.02)
    time.sleep({"wait": 60, "deaf": 60, "abrupt": 60}.get(act, 0))
    note("end")
    folder.finish({"last": {"test_top1": 12.5}})
"""


@pytest.fixture(autouse=True)
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)

    def command(job: FrozenJob, number: int) -> list[str]:
        return [sys.executable, str(path), str(job.file), str(number)]

    monkeypatch.setattr(child_run, "_command", command)


@pytest.fixture(autouse=True)
def handlers_are_put_back() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


def a_run(
    runs: Path, name: str, act: str = "work", begun: int = 0, device: str = "cpu", **more: Any
) -> PlannedRun:
    config = {
        "act": act,
        "begun": begun,
        "journal": str(runs / "journal"),
        "trainer": {"threads": 1, "device": device},
    }
    return planned(runs / "main" / "g" / name, config, **more)


def journal(runs: Path) -> list[tuple[str, str]]:
    path = runs / "journal"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(what, name) for what, name in (line.split() for line in lines)]


def outcome(end: SideBySideEnd) -> dict[str, str]:
    return {each.run.folder.name: each.state for each in end.outcomes}


def reason(end: SideBySideEnd, name: str) -> str:
    return next(each.reason for each in end.outcomes if each.run.folder.name == name)


def when(runs: Path, events: set[tuple[str, str]], *send: int) -> threading.Thread:
    """Sends signals to this process, the first when the journal holds some events, then one a time."""

    def work() -> None:
        while not events <= set(journal(runs)):
            time.sleep(0.02)
        for number in send:
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_no_more_than_asked_go_on_at_once_and_no_less(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, f"r{k}", "pair", begun=2 + k // 2 * 2) for k in range(4)]
    job = frozen(tmp_path, runs)
    end = run_side_by_side([job], 2)
    assert (end.all_done, end.exit_code, end.failures()) == (True, 0, [])
    at_once = peak = 0
    for what, _ in journal(tmp_path):
        at_once += 1 if what == "begin" else -1
        peak = max(peak, at_once)
    assert peak == 2


def test_runs_at_the_same_time_have_different_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,8")
    runs = [a_run(tmp_path, f"r{k}", "pair", begun=2 + k // 2 * 2, device="auto") for k in range(6)]
    assert run_side_by_side([frozen(tmp_path, runs)], 2).all_done
    given = [(run.folder / "gpus").read_text() for run in runs]
    assert [set(pair) for pair in zip(given[::2], given[1::2], strict=True)] == [{"7", "8"}] * 3


def test_a_run_begins_when_what_it_needs_is_done(tmp_path: Path) -> None:
    teacher = a_run(tmp_path, "teacher")
    stage = a_run(tmp_path, "stage", needs=(teacher.folder, tmp_path / "another/job/seed0"))
    cell = a_run(tmp_path, "cell", needs=(stage.folder,))
    beside = a_run(tmp_path, "beside")
    end = run_side_by_side([frozen(tmp_path, [cell, stage, teacher, beside])], 4)
    assert set(outcome(end).values()) == {"done"}
    order = [event for event in journal(tmp_path) if event[1] != "beside"]
    names = ["teacher", "stage", "cell"]
    assert order == [(what, name) for name in names for what in ("begin", "end")]


def test_a_need_may_be_in_another_job(tmp_path: Path) -> None:
    teacher = a_run(tmp_path, "teacher")
    first = frozen(tmp_path / "1", [a_run(tmp_path, "cell", needs=(teacher.folder,))])
    end = run_side_by_side([first, frozen(tmp_path / "2", [teacher])], 2)
    assert end.all_done
    assert journal(tmp_path)[0] == ("begin", "teacher")


def test_when_a_run_fails_those_that_need_it_do_and_no_others(tmp_path: Path) -> None:
    teacher = a_run(tmp_path, "teacher", "fail")
    stage = a_run(tmp_path, "stage", needs=(teacher.folder,))
    cell = a_run(tmp_path, "cell", needs=(stage.folder,))
    end = run_side_by_side([frozen(tmp_path, [teacher, stage, cell, a_run(tmp_path, "beside")])], 2)
    assert outcome(end) == {"teacher": "failed", "stage": "failed", "cell": "failed", "beside": "done"}
    assert end.exit_code == 1
    assert reason(end, "teacher") == "UserError: no luck"
    assert reason(end, "stage") == "not begun: it needs cell teacher, which is not finished"
    assert {name for _, name in journal(tmp_path)} == {"teacher", "beside"}
    assert status(stage.folder)["state"] == "failed"
    assert "it needs cell teacher" in status(stage.folder)["error"]
    assert len(end.failures()) == 3


def test_what_was_finished_before_is_not_made_again(tmp_path: Path) -> None:
    done, lacking = a_run(tmp_path, "done"), a_run(tmp_path, "lacking", needed=("last.pt",))
    for run in (done, lacking):
        folder = RunFolder(run.folder)
        folder.begin({}, {}, 1)
        folder.finish({})
    end = run_side_by_side([frozen(tmp_path, [done, lacking])], 1)
    assert outcome(end)["done"] == "done"
    assert {name for _, name in journal(tmp_path)} == {"lacking"}  # its checkpoint is gone: made again


@pytest.mark.parametrize(
    ("act", "said"),
    [
        ("crash", "the last words"),
        ("killed", "its process was ended by SIGKILL"),
        ("leave", "exit code 0"),
    ],
)
def test_a_process_that_dies_without_a_word_is_a_failed_run(tmp_path: Path, act: str, said: str) -> None:
    run = a_run(tmp_path, "r0", act)
    # An earlier attempt has failed for a reason of its own, which explains nothing now.
    folder = RunFolder(run.folder)
    folder.begin({}, {}, 1)
    folder.fail(UserError("an old story"))
    end = run_side_by_side([frozen(tmp_path, [run, a_run(tmp_path, "r1")])], 1)
    assert outcome(end) == {"r0": "failed", "r1": "done"}
    assert said in reason(end, "r0")
    assert status(run.folder)["state"] == "failed"
    assert said in status(run.folder)["error"]
    (line,) = end.failures()
    assert line.startswith("failed: cell r0 (")
    assert str(tmp_path / "main/sweeps/2026-01-01_00-00-00/logs/g_r0.log") in line


def test_what_another_process_works_on_is_left_to_it(tmp_path: Path) -> None:
    run = a_run(tmp_path, "r0", "crash")
    folder = RunFolder(run.folder)
    with folder.owned():
        folder.begin({}, {}, 1)
        end = run_side_by_side([frozen(tmp_path, [run])], 1)
    assert end.exit_code == 1
    assert status(run.folder)["state"] == "running"


def test_runs_that_fail_alike_share_a_line(tmp_path: Path) -> None:
    end = run_side_by_side([frozen(tmp_path, [a_run(tmp_path, f"r{k}", "fail") for k in range(3)])], 3)
    (line,) = end.failures()
    assert line.startswith("failed: cell r0, cell r1, cell r2 (UserError: no luck")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP])
def test_a_signal_is_passed_on_and_waited_for(tmp_path: Path, number: signal.Signals) -> None:
    job = frozen(tmp_path, [a_run(tmp_path, f"r{k}", "wait") for k in range(3)])
    sender = when(tmp_path, {("begin", "r0"), ("begin", "r1")}, number)
    end = run_side_by_side([job], 2)
    sender.join()
    assert end.signal == number
    assert end.exit_code == 130
    assert outcome(end) == {"r0": "interrupted", "r1": "interrupted", "r2": "waiting"}
    assert end.failures() == []
    name = "SIGTERM" if number == signal.SIGHUP else number.name
    assert sorted(journal(tmp_path)[2:]) == [(name, "r0"), (name, "r1")]
    assert status(job.runs[0].folder)["state"] == "interrupted"
    assert not job.runs[2].folder.exists()


def test_what_was_told_to_stop_and_could_not_save_has_not_failed(tmp_path: Path) -> None:
    """As torchrun, when the signal comes before it has started its processes."""
    job = frozen(tmp_path, [a_run(tmp_path, "r0", "abrupt")])
    sender = when(tmp_path, {("begin", "r0")}, signal.SIGTERM)
    end = run_side_by_side([job], 1)
    sender.join()
    assert outcome(end) == {"r0": "interrupted"}


def test_a_second_ctrl_c_kills(tmp_path: Path) -> None:
    job = frozen(tmp_path, [a_run(tmp_path, "r0", "deaf")])
    sender = when(tmp_path, {("begin", "r0")}, signal.SIGINT, signal.SIGINT)
    end = run_side_by_side([job], 1)
    sender.join()
    assert end.signal == signal.SIGINT
    assert outcome(end) == {"r0": "failed"}
    assert "SIGKILL" in status(job.runs[0].folder)["error"]


def test_a_run_that_somebody_stops_stops_no_other(tmp_path: Path) -> None:
    job = frozen(tmp_path, [a_run(tmp_path, "r0", "wait"), a_run(tmp_path, "r1")])
    sessions: list[bool] = []

    def stop() -> None:
        while ("begin", "r0") not in journal(tmp_path):
            time.sleep(0.02)
        pid = json.loads((job.runs[0].folder / "run.lock").read_text())["pid"]
        sessions.append(os.getsid(pid) == pid)
        os.kill(pid, signal.SIGTERM)

    sender = threading.Thread(target=stop)
    sender.start()
    end = run_side_by_side([job], 2)
    sender.join()
    assert sessions == [True]  # the terminal's Ctrl-C does not reach it, its parent's word does
    assert (end.signal, end.exit_code) == (None, 1)
    assert outcome(end) == {"r0": "interrupted", "r1": "done"}
    assert end.failures()[0].startswith("interrupted: cell r0")


def test_the_display_has_a_line_for_each_event(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gda.cluster.processes.display.logger.propagate", True)
    runs = [a_run(tmp_path, "r0"), a_run(tmp_path, "r1", "fail")]
    with caplog.at_level("INFO", logger="gda"):
        run_side_by_side([frozen(tmp_path, runs)], 1)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "started: cell r0"
    assert lines[1].startswith("[1/2] done: cell r0, test top-1 12.50 % in ")
    assert lines[-1] == "[2/2] failed: cell r1: UserError: no luck"


def test_threads_and_gpus_are_shared_out() -> None:
    gpus = {"CUDA_VISIBLE_DEVICES": "3,5,GPU-a"}
    assert [share.gpus for share in shares(4, 1, gpus)] == [("3",), ("5",), ("GPU-a",), ("3",)]
    assert [share.gpus for share in shares(2, 2, gpus)] == [("3", "5"), ("GPU-a", "3")]
    assert shares(1, 1, gpus)[0].gpus is None
    assert shares(2, 1, {"CUDA_VISIBLE_DEVICES": "0"})[0].gpus is None
    assert shares(2, 4, gpus)[0].gpus is None
    none = {"CUDA_VISIBLE_DEVICES": ""}
    cores = len(os.sched_getaffinity(0))
    assert shares(1, 1, none) == [MachineShare(cores, None)]
    assert shares(cores, 1, none)[0].threads == 1
    assert shares(10 * cores, 2, none)[-1] == MachineShare(1, None)
    assert cpu_count({"SLURM_CPUS_PER_TASK": "1"}) == 1
    assert cpu_count({"SLURM_CPUS_PER_TASK": "10000"}) == cores


@pytest.mark.parametrize(
    ("listed", "names"),
    [("", []), ("-1", []), ("0", ["0"]), ("1, 0", ["1", "0"]), ("0,-1,2", ["0"]), ("NoDevFiles", [])],
)
def test_gpus_are_read_from_the_environment_as_cuda_does(listed: str, names: list[str]) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": listed}) == names


def test_gpus_are_counted_where_the_environment_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, devices = tmp_path / "gpus", tmp_path / "dev"
    devices.mkdir()
    monkeypatch.setattr("gda.cluster.processes.machine_share._DRIVER", driver)
    monkeypatch.setattr("gda.cluster.processes.machine_share._DEVICES", devices)
    assert visible_gpus({}) == []
    for name in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0"):
        (driver / name).mkdir(parents=True)
    assert visible_gpus({}) == ["0", "1", "2"]
    for name in ("nvidia0", "nvidia5", "nvidiactl", "nvidia-uvm"):  # a container with two of the three
        (devices / name).touch()
    assert visible_gpus({}) == ["0", "1"]


def test_what_a_child_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    share = MachineShare(3, ("1",))
    config = {"trainer": {"threads": None, "device": "auto"}}
    given = child_run._environment(config, share, 1)
    assert (given["OMP_NUM_THREADS"], given["CUDA_VISIBLE_DEVICES"]) == ("3", "1")
    assert given["GDA_PARENT"] == str(os.getpid())
    assert [path for path in sys.path if path] == given["PYTHONPATH"].split(os.pathsep)
    assert "GDA_PARENT" not in child_run._environment(config, share, 2)
    chosen = child_run._environment({"trainer": {"threads": 2, "device": "cuda:1"}}, share, 1)
    assert "OMP_NUM_THREADS" not in chosen
    assert "CUDA_VISIBLE_DEVICES" not in chosen
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert child_run._environment(config, share, 1)["OMP_NUM_THREADS"] == "5"
