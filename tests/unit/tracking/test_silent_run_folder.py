"""The run folder of ranks above 0: they change nothing in it, unless they fail."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from gda.tracking import silent_run_folder
from gda.tracking.lock import FolderLocked
from gda.tracking.run_folder import RunFolder
from gda.tracking.silent_run_folder import SilentRunFolder


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunFolder, SilentRunFolder]:
    """The same folder as rank 0 and rank 3 see it, in the middle of a run."""
    monkeypatch.setattr(silent_run_folder, "rank", lambda: 3)
    main = RunFolder(tmp_path / "run")
    main.begin({"seed": 0}, {"study": "s"}, epochs=2)
    main.append({"epoch": 1, "test_top1": 10.0}, {"epoch": 1})
    return main, SilentRunFolder(main.path)


def content(folder: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.path.iterdir()}


def attempts(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.path / "attempts.jsonl").read_text().splitlines()]


def test_it_reads_and_writes_nothing(folders: tuple[RunFolder, SilentRunFolder]) -> None:
    main, silent = folders
    before = content(main)
    with silent.owned(), silent.logged():
        silent.begin({"seed": 1}, {"study": "t"}, epochs=5)
        silent.restore_history([])
        silent.append({"epoch": 2}, {"epoch": 2})
        silent.saved_within(4)
        silent.require_ownership()
        logging.getLogger("gda").warning("said by all, written by one")
        silent.interrupt()
        silent.preempt()
        silent.finish({"last": {}})
    assert content(main) == before
    assert (silent.status(), silent.history()) == (main.status(), main.history())
    assert not silent.is_done()


def test_every_way_of_writing_is_shut() -> None:
    """A new one in the run folder must be thought of here, too."""
    reading = {"status", "description", "is_done", "history", "require_ownership"}
    public = {name for name, value in vars(RunFolder).items() if callable(value) and name[0] != "_"}
    assert public - reading <= vars(SilentRunFolder).keys()


def test_rank_0_holds_the_lock_for_all(folders: tuple[RunFolder, SilentRunFolder]) -> None:
    main, silent = folders
    with main.owned():
        with silent.owned(), silent.owned(wait=True):
            pass
        with pytest.raises(FolderLocked), RunFolder(main.path).owned():
            pass


def test_a_failure_of_its_own_is_written_down_with_its_number_and_traceback(
    folders: tuple[RunFolder, SilentRunFolder],
) -> None:
    main, silent = folders
    log = logging.getLogger("gda")
    log.setLevel(logging.DEBUG)
    with main.logged():
        log.info("before")
        try:
            raise ArithmeticError("broken on purpose\nsecond line")
        except ArithmeticError as error:
            silent.fail(error)
        log.info("after")
    status = main.status()
    assert (status["state"], status["epoch"]) == ("failed", 1)
    assert status["error"] == "process 3: ArithmeticError: broken on purpose"
    assert attempts(main)[-1]["error"] == status["error"]
    text = (main.path / "run.log").read_text()
    positions = [
        text.index(each)
        for each in ("before", "process 3 failed", "Traceback", "test_silent_run_folder.py", "after")
    ]
    assert positions == sorted(positions)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", text.splitlines()[1]), "stamped like the others"


def test_an_error_without_words_is_named(folders: tuple[RunFolder, SilentRunFolder]) -> None:
    main, silent = folders
    silent.fail(MemoryError())
    assert main.status()["error"] == "process 3: MemoryError: MemoryError"


def test_a_folder_that_can_not_be_written_hides_no_failure(tmp_path: Path) -> None:
    nowhere = SilentRunFolder(tmp_path / "file" / "run")
    (tmp_path / "file").touch()
    nowhere.fail(ValueError("bad"))


def test_what_it_says_within_the_run_stays_with_it(
    folders: tuple[RunFolder, SilentRunFolder], capfd: pytest.CaptureFixture[str]
) -> None:
    """Without any handler Python itself would print warnings, once for each rank."""
    _, silent = folders
    log = logging.getLogger("gda")
    kept, propagates = log.handlers[:], log.propagate
    log.handlers, log.propagate = [], False
    try:
        with silent.logged():
            log.warning("a damaged checkpoint")
        assert log.handlers == []
    finally:
        log.handlers, log.propagate = kept, propagates
    assert capfd.readouterr() == ("", "")
