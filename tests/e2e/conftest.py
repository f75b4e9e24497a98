import itertools
import multiprocessing
import multiprocessing.forkserver
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launching import ROOT, Child, Hook, run_child

Launch = Callable[..., Child]


@pytest.fixture(scope="session", autouse=True)
def server() -> None:
    """Starts the process that forks the children, with what they need imported."""
    multiprocessing.forkserver.set_forkserver_preload(["warm_child"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", f"{ROOT}:{Path(__file__).parent}")
        multiprocessing.forkserver.ensure_running()


@pytest.fixture
def start(tmp_path: Path, tiny_overrides: Callable[..., list[str]]) -> Iterator[Launch]:
    """Starts `python launch.py` with the tiny settings in `tmp_path`; flags and overrides come on top."""
    children: list[Child] = []
    numbers = itertools.count()

    def begin(
        *arguments: str, hook: Hook | None = None, folder: Path = tmp_path, path: tuple[Path, ...] = ()
    ) -> Child:
        flags = [each for each in arguments if "=" not in each]
        overrides = tiny_overrides(*(each for each in arguments if "=" in each))
        log = tmp_path / f"child{next(numbers)}.log"
        context = multiprocessing.get_context("forkserver")
        process = context.Process(
            target=run_child, args=([*flags, *overrides], str(folder), str(log), hook, list(map(str, path)))
        )
        process.start()
        children.append(Child(process, log))
        return children[-1]

    yield begin
    for child in children:
        if child.process.is_alive():
            child.process.kill()
        child.process.join()
