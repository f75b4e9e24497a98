"""A grid on a cluster from the command to the table, and what goes wrong on the way."""

import os
import select
import signal
import subprocess
import sys

import pytest
from sweeping import Site, read, until

PLAIN = ("study=s", "recipe.epochs=1", "distiller=vanilla", "alignment=none")
FAILING = (
    "study=s",
    "recipe.epochs=2",
    "teacher=resnet8",
    "distiller=vanilla,breaking",
    "alignment=none",
)
GRID = (
    "study=grid",
    "recipe.epochs=1",
    "teacher=resnet20",
    "distiller=vanilla,kd,dkd",
    "alignment=none",
    "seed=0,1",
    "cluster.gpus_per_node=1",
)


def test_a_grid_from_the_command_to_the_table(site: Site) -> None:
    printed = site.submit(*GRID)
    assert "6" in printed
    assert "python -m gda.status grid" in printed
    jobs = site.jobs("grid")
    assert len(jobs) == 7, "six cells and their teacher"
    for job in set(jobs.values()):
        assert job in printed or job.partition("_")[0] in printed
    site.wait("grid")

    (teacher,) = (run for run in jobs if run not in site.cells("grid"))
    (end,) = site.account(jobs[teacher], "End")
    for run in jobs.keys() - {teacher}:
        (start,) = site.account(jobs[run], "Start")
        assert start >= end, "the cells wait for their teacher"
    for job in jobs.values():
        assert site.states(job) == ["COMPLETED"]
        assert "gres/gpu=1" in site.account(job, "AllocTRES")[0]
    code, status = site.status("grid")
    assert code == 0, status
    assert status["counts"] == {"done": 6}
    (sweep,) = (site.folder / "runs" / "grid" / "sweeps").iterdir()
    for run in site.cells("grid"):
        assert read(site.folder / "runs" / "grid" / run / "run.json")["sweep"] == f"grid/{sweep.name}"

    report = site.python("-m", "gda.report", "grid")
    assert report.returncode == 0, report.stdout
    table = [line.replace("│", " ").split()[:2] for line in report.stdout.splitlines()]
    for label in ("vanilla", "kd", "dkd"):
        assert [label, "2"] in table, report.stdout

    # the same command again submits nothing; with one seed more, what is missing
    again = site.submit(*GRID)
    assert site.jobs("grid") == jobs, again
    more = site.submit(*GRID, "distiller=kd", "seed=0,1,2")
    (added,) = set(site.jobs("grid").values()) - set(jobs.values())
    assert added.partition("_")[0] in more
    site.wait("grid")
    assert site.status("grid")[1]["counts"] == {"done": 7}


def test_failing_cells_are_all_named_and_stop_no_other(site: Site) -> None:
    grid = (*FAILING, f"teacher.checkpoint={site.teacher}", "seed=0,1")
    done = site.launch("cluster=slurm", *grid, "cluster.wait=true")
    assert done.returncode not in (0, 130), done.stdout
    for seed in (0, 1):
        assert f"distiller=breaking seed={seed}" in done.stdout, done.stdout
    assert done.stdout.count("ArithmeticError: broken on purpose") >= 2
    site.wait("s")
    jobs = site.jobs("s")
    code, status = site.status("s")
    assert (code, status["counts"]) == (1, {"done": 2, "failed": 2})
    for cell in status["cells"]:
        state = site.states(jobs[cell["folder"]])
        assert state == (["FAILED"] if cell["state"] == "failed" else ["COMPLETED"])
        if cell["state"] == "failed":
            assert "ArithmeticError: broken on purpose" in cell["error"]
    shown = site.python("-m", "gda.status", "s", "--failed")
    assert shown.returncode == 1
    assert shown.stdout.count("Traceback (most recent call last)") == 2
    assert "acting.py" in shown.stdout


def test_ctrl_c_asks_what_becomes_of_the_jobs(site: Site) -> None:
    """At a terminal; the answer is to cancel them."""
    words = ("study=s", "distiller=paced", "teacher=resnet8", f"teacher.checkpoint={site.teacher}")
    command = site.command("cluster=slurm", *words, "cluster.wait=true", "recipe.epochs=50")
    ours, theirs = os.openpty()
    child = subprocess.Popen(
        [sys.executable, *command],
        cwd=site.folder,
        env=site.environment(PACE="0.5"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = bytearray()

    def reads(text: bytes) -> bool:
        while select.select([ours], [], [], 0)[0] and text not in said:
            try:
                said.extend(os.read(ours, 4096))
            except OSError:  # the child has closed its end
                break
        return text in said or child.poll() is not None

    try:
        until(lambda: reads(b"Submitted"), "the submission", site.describe)
        site.under_way("s", epoch=1)
        reads(b"never said")
        child.send_signal(signal.SIGINT)
        until(lambda: reads(b"[c/L]"), "the question", said.decode)
        os.write(ours, b"c\n")
        until(lambda: reads(b"never said"), "the end", said.decode)
    finally:
        child.kill()
        os.close(ours)
    assert child.returncode == 130, said.decode()
    site.wait("s")
    job = site.job("s")
    assert site.states(job) == ["CANCELLED"]
    assert job in said.decode().rpartition("[c/L]")[2]
    assert site.state("s") in ("cancelled", "interrupted")


def test_runs_side_by_side_in_one_job(site: Site) -> None:
    grid = (*FAILING, f"teacher.checkpoint={site.teacher}", "seed=0,1,2")
    share = ("cluster.side_by_side=3", "cluster.gpus_per_node=1", "cluster.cpus_per_task=3")
    done = site.launch("cluster=slurm_packed", *grid, *share)
    assert done.returncode == 0, done.stdout
    jobs = site.jobs("s")
    assert sorted(list(jobs.values()).count(job) for job in set(jobs.values())) == [3, 3]
    site.wait("s")
    code, status = site.status("s")
    assert (code, status["counts"]) == (1, {"done": 3, "failed": 3})
    for cell in status["cells"]:
        if cell["state"] == "failed":
            assert "ArithmeticError: broken on purpose" in cell["error"]
            assert site.states(jobs[cell["folder"]]) == ["FAILED"]


def test_a_teacher_that_fails_leaves_its_cells_unstarted(site: Site) -> None:
    """A learning rate at which every model diverges: the cells that wait for the teacher never start."""
    grid = ("study=s", "recipe.epochs=1", "recipe.lr=1e30", "teacher=resnet8", "distiller=kd", "seed=0,1")
    site.submit(*grid)
    jobs = site.jobs("s")
    (teacher,) = (run for run in jobs if run not in site.cells("s"))
    until(lambda: site.states(jobs[teacher]) == ["FAILED"], "the teacher's end", site.describe)
    until(
        lambda: {cell["state"] for cell in site.status("s")[1]["cells"]} == {"blocked"},
        "the cells to be named",
        site.describe,
        pause=5,
    )
    code, status = site.status("s")
    assert code == 1
    assert "failed" in str(status["inputs"])
    # the same command puts it in the queue again
    site.submit(*grid)
    assert set(site.jobs("s").values()).isdisjoint(set(jobs.values())), "the stuck jobs are given up"
    site.wait("s")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("cluster.partition=nowhere", ("nowhere", "debug", "low", "apart")),
        ("cluster.partition=dbug", ("dbug", "did you mean 'debug'", "cluster.partition=debug")),
        ("runs=FILE/runs", ("FILE/runs", "can't be written", "runs=FOLDER")),
    ],
)
def test_what_the_cluster_does_not_have_is_refused(site: Site, word: str, said: tuple[str, ...]) -> None:
    (site.folder / "FILE").touch()
    done = site.launch("cluster=slurm", *PLAIN, "seed=0,1", word)
    assert done.returncode == 1
    for text in said:
        assert text in done.stdout, done.stdout
    assert "Traceback" not in done.stdout
    assert not list(site.folder.glob("runs/s/*/seed*"))


def test_a_machine_without_sbatch_says_so(site: Site) -> None:
    bare = site.folder / "bin"
    bare.mkdir()
    done = site.launch("cluster=slurm", *PLAIN, PATH=str(bare))
    assert done.returncode == 1
    assert "sbatch" in done.stdout
    assert "Traceback" not in done.stdout
    assert not list(site.folder.glob("runs/s/*/seed*"))
