import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from gda.tracking.guard import GuardBusy, file_guard
from gda.tracking.lock import LOCK_NAME, FolderLock, FolderLocked

# Enters the folder several times; two processes inside at once would meet at the marker file.
CONTENDER = """
import os, sys, time
from pathlib import Path
from gda.tracking.lock import FolderLock
folder = Path(sys.argv[1])
lock = FolderLock(folder, heartbeat_seconds=0.1, stale_seconds=float(sys.argv[3]))
for _ in range(int(sys.argv[2])):
    with lock.acquire(wait=True):
        os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
        with open(folder / "log", "a") as log:
            log.write(f"{os.getpid()}\\n")
        time.sleep(0.01)
        assert not lock.lost
        (folder / "inside").unlink()
"""

# Waits for the starting gun, asks once, and keeps what it gets until its input is closed.
RACER = """
import sys, time
from pathlib import Path
from gda.tracking.lock import FolderLock, FolderLocked
folder = Path(sys.argv[1])
print("ready", flush=True)
while not (folder / "go").exists():
    time.sleep(0.001)
try:
    lock = FolderLock(folder, heartbeat_seconds=0.2, stale_seconds=30).acquire()
    print("won", flush=True)
    while not (folder / "end").exists():
        time.sleep(0.01)
    lock.release()
except FolderLocked:
    print("locked", flush=True)
"""


def write_lock(folder: Path, **changes: object) -> None:
    content = {"host": "elsewhere", "pid": 1, "process_start": "x/y/1", "created": "then", "token": "t"}
    (folder / LOCK_NAME).write_text(json.dumps(content | changes))


def dead_pid(python) -> int:
    process = python("")
    process.wait(timeout=60)
    return process.pid


def test_held_lost_and_released(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "new" / "seed0")
    with lock:
        assert lock.held
        assert not lock.lost
        content = json.loads(lock.path.read_text())
        assert (content["host"], content["pid"]) == (socket.gethostname(), os.getpid())
        assert set(content) == {"host", "pid", "process_start", "created", "token"}
    assert not lock.held
    assert not lock.path.exists()
    with lock:  # the object can be used again
        assert lock.held


def test_a_second_holder_is_told_who_has_it(tmp_path: Path) -> None:
    with FolderLock(tmp_path), pytest.raises(FolderLocked) as caught:
        FolderLock(tmp_path).acquire()
    message = str(caught.value)
    assert str(os.getpid()) in message
    assert socket.gethostname() in message
    assert "\n" not in message


def test_eight_processes_are_inside_one_at_a_time(tmp_path: Path, python) -> None:
    processes = [python(CONTENDER, tmp_path, 4, 30) for _ in range(8)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    log = (tmp_path / "log").read_text().split()
    assert len(log) == 32
    assert len(set(log)) == 8
    assert {file.name for file in tmp_path.iterdir()} == {"log", "run.lock.guard"}


def test_one_of_eight_takes_over_a_dead_lock(tmp_path: Path, python) -> None:
    owner = FolderLock(tmp_path).acquire()
    start = json.loads(owner.path.read_text())["process_start"].rpartition("/")[0]
    owner.release()
    write_lock(tmp_path, host=socket.gethostname(), pid=dead_pid(python), process_start=f"{start}/1")
    processes = [python(RACER, tmp_path) for _ in range(8)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    answers = [process.stdout.readline().strip() for process in processes]
    (tmp_path / "end").touch()
    assert sorted(answers) == ["locked"] * 7 + ["won"]


def test_kill_9_frees_the_lock_at_once(tmp_path: Path, python) -> None:
    (tmp_path / "go").touch()
    process = python(RACER, tmp_path)
    assert process.stdout.readline() == "ready\n"
    assert process.stdout.readline() == "won\n"
    with pytest.raises(FolderLocked):
        FolderLock(tmp_path).acquire()
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but still a zombie
    start = time.monotonic()
    with FolderLock(tmp_path) as lock:
        assert lock.held
    assert time.monotonic() - start < 30  # not the 60 s of a silent heartbeat


def test_a_process_number_that_is_used_again_holds_nothing(tmp_path: Path) -> None:
    with FolderLock(tmp_path) as lock:
        content = json.loads(lock.path.read_text())
    content["process_start"] = content["process_start"].rpartition("/")[0] + "/1"
    write_lock(tmp_path, **content)
    with FolderLock(tmp_path) as lock:
        assert lock.held


@pytest.mark.parametrize("changes", [{}, {"host": socket.gethostname(), "process_start": "other-boot/1/1"}])
def test_another_machine_is_dead_when_its_heartbeat_stops(tmp_path: Path, changes: dict[str, str]) -> None:
    write_lock(tmp_path, **changes)
    os.utime(tmp_path / LOCK_NAME, (1, 1))  # an old time stamp proves nothing: clocks differ
    said: list[str] = []
    start = time.monotonic()
    with FolderLock(tmp_path, 0.1, stale_seconds=1).acquire(wait=True, on_wait=said.append) as lock:
        assert lock.held
    assert time.monotonic() - start >= 1
    assert len(said) == 1
    assert "process 1" in said[0]


def test_several_wait_for_a_dead_machine(tmp_path: Path, python) -> None:
    write_lock(tmp_path)
    processes = [python(CONTENDER, tmp_path, 1, 1) for _ in range(4)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert len((tmp_path / "log").read_text().split()) == 4


def test_a_beating_machine_keeps_its_lock(tmp_path: Path, python) -> None:
    write_lock(tmp_path)
    beat = "import os, sys, time\nwhile True: os.utime(sys.argv[1]); time.sleep(0.05)"
    python(beat, tmp_path / LOCK_NAME)
    with pytest.raises(FolderLocked, match="elsewhere"):
        FolderLock(tmp_path, 1, stale_seconds=60).acquire()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]"])
def test_a_damaged_lock_is_watched_too(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK_NAME).write_bytes(content)
    with FolderLock(tmp_path, 0.1, stale_seconds=0.5) as lock:
        assert lock.held


def test_a_holder_notices_that_it_was_taken_for_dead(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path, heartbeat_seconds=0.05, stale_seconds=30).acquire()
    lock.path.unlink()
    write_lock(tmp_path, token="somebody")
    deadline = time.monotonic() + 30
    while not lock.lost and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lock.lost
    assert not lock.held
    lock.release()
    assert json.loads(lock.path.read_text())["token"] == "somebody"


def test_the_heartbeat_touches_the_file(tmp_path: Path) -> None:
    with FolderLock(tmp_path, heartbeat_seconds=0.05, stale_seconds=30) as lock:
        os.utime(lock.path, (1, 1))
        deadline = time.monotonic() + 30
        while lock.path.stat().st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock.path.stat().st_mtime > 1


def test_a_guard_gives_up_in_time(tmp_path: Path) -> None:
    with file_guard(tmp_path / "guard"), pytest.raises(GuardBusy), file_guard(tmp_path / "guard", 0.05):
        pass
    with file_guard(tmp_path / "guard", 0.05):
        pass
