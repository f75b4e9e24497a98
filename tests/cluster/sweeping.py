"""What a user of the cluster types, and what SLURM and the run folders then say."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
from slurm.daemons import environment
from slurm.layout import Layout

ROOT = Path(__file__).resolve().parents[2]
METHODS = Path(__file__).parent / "methods"
MODE = "GDA_CLUSTER_TESTS"  # `required`: what can't be tested here fails instead of being skipped (CI)
PATIENCE = 300.0  # a limit for a hanging test, not a claim about speed
_AT_ONCE = threading.Semaphore(3)  # commands that import torch at the same time

# Small jobs; the fake GPUs are for the tests that want some.
SMALL = ("cluster.cpus_per_task=1", "cluster.gpus_per_node=0", "cluster.timeout_min=60", "teacher=none")

Overrides = Callable[..., list[str]]
Row = dict[str, Any]


@dataclass
class Site:
    """A user's folder on the cluster: where the commands are typed and the runs are.

    Attributes:
        layout: The cluster.
        folder: The working directory; runs go below it, into `runs`.
        tiny: Turns overrides into a command line that trains in a second (`tests/conftest.py`).
        teacher: A file with weights of a teacher.
        project: The checkout whose `launch.py` is meant.
    """

    layout: Layout
    folder: Path
    tiny: Overrides
    teacher: Path
    project: Path = ROOT

    def launch(self, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Types `python launch.py WORDS` with the tiny settings and small jobs; waits for the command."""
        with _AT_ONCE:
            return self.python(*self.command(*words), **variables)

    def command(self, *words: str) -> list[str]:
        """The words after `python` that launch with the tiny settings and small jobs."""
        launch = [str(self.project / "launch.py"), "--config-dir", str(METHODS / "conf")]
        return [*launch, *self.tiny(*SMALL, *words)]

    def python(self, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Runs a Python of its own in the folder."""
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )

    def environment(self, **variables: str) -> dict[str, str]:
        """The environment of the user's shell."""
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{self.project}:{METHODS}"}
        return environment(self.layout.base, **own, **variables)

    def submit(self, *words: str, **variables: str) -> str:
        """Launches what must be accepted, and returns what was printed."""
        done = self.launch("cluster=slurm", *words, **variables)
        assert done.returncode == 0, done.stdout
        assert "Traceback" not in done.stdout, done.stdout
        return done.stdout

    def slurm(self, *command: str) -> str:
        """Runs a command of SLURM that must succeed, and returns its output."""
        done = subprocess.run(
            command,
            env=environment(self.layout.base),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def submissions(self, study: str) -> list[Row]:
        """What was submitted for a study, oldest first."""
        sweeps = sorted((self.folder / "runs" / study / "sweeps").iterdir())
        return [read(path / "submission.json") for path in sweeps if (path / "submission.json").exists()]

    def jobs(self, study: str) -> dict[str, str]:
        """The newest job of each run of a study, by `TITLE/seedK`; inputs too."""
        found: dict[str, str] = {}
        for submission in self.submissions(study):
            for job in submission["jobs"]:
                found |= {short(run): job["job"] for run in job["runs"]}
        return found

    def job(self, study: str) -> str:
        """The one job of a study."""
        (job,) = set(self.jobs(study).values())
        return job

    def log(self, study: str) -> str:
        """The output of the newest job of a study."""
        return Path(self.submissions(study)[-1]["jobs"][-1]["log"]).read_text()

    def queued(self, jobs: Iterable[str]) -> dict[str, str]:
        """The states of those of these jobs that wait, run or end."""
        lines = self.slurm("squeue", "-h", "-r", "-o", "%i %T").splitlines()
        states = dict(line.split() for line in lines)
        return {job: states[job] for job in jobs if job in states}

    def states(self, job: str) -> list[str]:
        """How each attempt of a job ended, as the accounts have it: they come some seconds late."""
        return [line.split()[0] for line in self.account(job, "State")]

    def account(self, job: str, field: str) -> list[str]:
        """What the accounts say of each attempt of a job."""
        rows = self.slurm("sacct", "-n", "-P", "-X", "-D", "-j", job, "-o", field).splitlines()
        return [row for row in rows if row]

    def wait(self, *studies: str) -> None:
        """Waits until the queue holds no job of the studies, and the accounts know their ends."""
        jobs = {job for study in studies for job in self.jobs(study).values()}
        until(lambda: not self.queued(jobs), f"the end of {jobs}", self.describe)
        # a task of an array that never started has no account of its own
        living = {"RUNNING", "PENDING", "REQUEUED"}
        until(
            lambda: not any(living & set(self.states(job)[-1:]) for job in jobs),
            f"the accounts of {jobs}",
            self.describe,
        )

    def status(self, study: str) -> tuple[int, Row]:
        """What `python -m gda.status STUDY --json` says, with its exit code.

        Folders are cut to `TITLE/seedK`, and states that no cell is in are left out.
        """
        done = self.python("-m", "gda.status", study, "--json")
        status = json.loads(done.stdout)
        for cell in [*status["cells"], *status["inputs"]]:
            cell["folder"] = short(cell["folder"])
        status["counts"] = {state: count for state, count in status["counts"].items() if count}
        return done.returncode, status

    def until_state(self, study: str, *states: str) -> None:
        """Waits until the status of the only cell of a study is one of these."""
        until(lambda: self.state(study) in states, " or ".join(states), self.describe, pause=5)

    def state(self, study: str) -> str:
        """The state of the one cell of a study."""
        (cell,) = self.status(study)[1]["cells"]
        return str(cell["state"])

    def cells(self, study: str) -> dict[str, Row]:
        """The cells of `python -m gda.status STUDY --json`, by `TITLE/seedK`."""
        return {cell["folder"]: cell for cell in self.status(study)[1]["cells"]}

    def run_folder(self, study: str, seed: str = "seed*") -> Path:
        """The one run of a study."""
        (folder,) = (self.folder / "runs" / study).glob(f"*/{seed}")
        return folder

    def under_way(self, study: str, epoch: int = 2, seed: str = "seed0") -> Path:
        """Waits until the one run of a study has finished an epoch, and returns its folder."""

        def there() -> bool:
            folders = (self.folder / "runs" / study).glob(f"*/{seed}/status.json")
            return any(read(path)["epoch"] >= epoch for path in folders)

        until(there, f"epoch {epoch} of {study}", self.describe)
        return self.run_folder(study, seed)

    def describe(self) -> str:
        """The state of things, for the report of a test that waited in vain."""
        queue = self.slurm("squeue", "-r", "-o", "%i %P %T %r %N %M")
        logs = sorted((self.folder / "runs").glob("*/sweeps/*/logs/*.out"))
        logs += sorted((self.folder / "runs").glob("*/sweeps/*/logs/*.err"))
        tails = [f"--- {path}\n{path.read_text(errors='replace')[-2000:]}" for path in logs]
        return "\n".join([queue, *tails])


def unavailable(reason: str) -> NoReturn:
    """Skips a test with a reason; fails it where the tests are required."""
    if os.environ.get(MODE) == "required":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def short(run: str) -> str:
    """`TITLE/seedK` of a run folder."""
    return "/".join(Path(run).parts[-2:])


def read(path: Path) -> Row:
    """Reads a JSON object; one that is being replaced is whole all the same."""
    content = json.loads(path.read_text())
    assert isinstance(content, dict)
    return content


def lines(path: Path) -> list[Row]:
    """Reads a journal."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def until(
    condition: Callable[[], bool], what: str, describe: Callable[[], str] = str, pause: float = 1
) -> None:
    """Waits for something to become true; asks every so many seconds, to leave the cores to the jobs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what} in vain\n{describe()}"
        time.sleep(pause)


def assert_same_run(folder: Path, whole: Path) -> None:
    """Two runs came out the same to the last bit: figures, weights, optimiser state."""
    import torch

    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for name in ("last.pt", "best.pt"):
        one, other = (torch.load(path / name, weights_only=True) for path in (folder, whole))
        assert_same(one, other)
    assert read(folder / "status.json")["state"] == "done"
    assert read(folder / "status.json")["result"] == read(whole / "status.json")["result"]


def assert_same(one: Any, other: Any) -> None:
    """Two parts of a checkpoint are the same."""
    import torch

    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def project_copy(folder: Path) -> Path:
    """A checkout of its own, which a test may edit."""
    copy = folder / "project"
    for name in ("gda", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "launch.py", copy)
    return copy
