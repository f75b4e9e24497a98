"""The tests of a cluster share one SLURM and begin all at once: most of their time is waiting.

Each test is a function of its `site` that tells a story from beginning to end. The first test that pytest
comes to starts every chosen one in a thread of its own; its turn then only hands over how it ended.
"""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from slurm import real_slurm
from slurm.layout import Layout
from slurm.packages import Unavailable
from sweeping import Overrides, Site, unavailable

HERE = Path(__file__).parent

Stories = dict[str, "Future[None]"]
_seconds: dict[str, float] = {}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Layout]:
    """The cluster: started, and stopped again unless it had been up before (`python -m slurm up`)."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        unavailable("these tests share one cluster and one process: leave -n out")
    was_up = real_slurm.is_up(real_slurm.layout_here())
    try:
        layout = real_slurm.up()
    except Unavailable as error:
        unavailable(f"no SLURM here: {error}")
    yield layout
    if not was_up:
        real_slurm.down()


@pytest.fixture(scope="session")
def stories(
    request: pytest.FixtureRequest,
    cluster: Layout,
    tiny_overrides: Overrides,
    teacher_weights: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Stories:
    """Begins every chosen test of this folder."""
    begun: Stories = {}
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.path.is_relative_to(HERE):
            folder = tmp_path_factory.mktemp("site")
            site = Site(cluster, folder, tiny_overrides, teacher_weights)
            begun[item.nodeid] = _begin(item, site)
    return begun


@pytest.fixture
def site(stories: Stories) -> None:
    """A user's folder on the cluster, a `Site`: each test's thread has been given its own."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Hands over how a story ended."""
    if "stories" not in pyfuncitem.funcargs and "site" not in pyfuncitem.funcargs:
        return None
    stories: Stories = pyfuncitem._request.getfixturevalue("stories")
    stories[pyfuncitem.nodeid].result()
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints how long each story took: pytest's own durations are of the waiting for it."""
    terminalreporter.section("stories")
    for name, seconds in sorted(_seconds.items(), key=lambda entry: -entry[1]):
        terminalreporter.line(f"{seconds:6.1f} s  {name}")


def _begin(item: pytest.Function, site: Site) -> "Future[None]":
    outcome: Future[None] = Future()
    parameters = item.callspec.params if hasattr(item, "callspec") else {}

    def story() -> None:
        began = time.monotonic()
        failure = None
        try:
            item.obj(site, **parameters)
        except BaseException as error:
            failure = error
        _seconds[item.name] = time.monotonic() - began
        if failure is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(failure)

    threading.Thread(target=story, name=item.name, daemon=True).start()
    return outcome
