"""Runs that SLURM stops and brings back end as one that was never stopped."""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slurm import real_slurm
from slurm.layout import GRACE_SECONDS
from sweeping import Site, assert_same_run, lines, read, until

# Several epochs of several steps, with something to lose: momentum, an average, a best epoch, draws of terms.
PACED = (
    "study=s",
    "distiller=paced",
    "teacher=resnet8",
    "alignment=gda",
    "recipe.epochs=8",
    "dataset.train_size=40",
    "trainer.ema_decay=0.9",
)


def paced(site: Site) -> tuple[str, ...]:
    return (*PACED, f"teacher.checkpoint={site.teacher}")


_one_at_a_time = threading.Lock()
_whole: list[Path] = []


def uninterrupted(site: Site) -> Path:
    """The same run, never stopped, on this machine; made by the first who asks."""
    with _one_at_a_time:
        if not _whole:
            done = site.launch(*paced(site), "study=whole")
            assert done.returncode == 0, done.stdout
            _whole.append(site.run_folder("whole"))
        return _whole[0]


@contextmanager
def power_cut(site: Site, node: str) -> Iterator[None]:
    """A node dies, and comes back after the block."""
    real_slurm.kill_node(site.layout, node)
    try:
        yield
    finally:
        real_slurm.start_node(site.layout, node)


def events(folder: Path) -> list[tuple[int, str]]:
    return [(line["attempt"], line["event"]) for line in lines(folder / "attempts.jsonl")]


def assert_went_on_in_mid_epoch(folder: Path) -> None:
    """No attempt but the first began at the beginning, and no epoch was trained twice."""
    begun = [line for line in lines(folder / "attempts.jsonl") if line["event"] == "begin"]
    assert len(begun) > 1
    assert all((line["epoch"], line["step"]) != (0, 0) for line in begun[1:]), begun
    assert [row["epoch"] for row in lines(folder / "metrics.jsonl")] == list(range(9))


def test_a_preempted_job_comes_back_and_ends_as_one_that_was_never_stopped(site: Site) -> None:
    site.submit(
        *paced(site), "cluster.partition=low", "cluster.sbatch={nodelist: n3, exclusive: true}", PACE="0.8"
    )
    folder = site.under_way("s")
    job = site.job("s")
    urgent = site.slurm("sbatch", "--parsable", "-p", "apart", "-w", "n3", "--exclusive", "--wrap", "sleep 3")
    asked = time.monotonic()
    until(lambda: read(folder / "status.json")["state"] == "preempted", "the save", site.describe)
    assert time.monotonic() - asked < GRACE_SECONDS
    until(lambda: site.queued([job]).get(job) == "PENDING", "the return to the queue", site.describe)
    code, status = site.status("s")
    assert code == 1
    assert [cell["state"] for cell in status["cells"]] == ["preempted"]
    site.wait("s")
    assert site.states(urgent.strip()) == ["COMPLETED"]
    assert site.states(job) == ["PREEMPTED", "COMPLETED"]
    assert events(folder) == [(1, "begin"), (1, "preempted"), (2, "begin"), (2, "done")]
    assert_went_on_in_mid_epoch(folder)
    assert_same_run(folder, uninterrupted(site))
    begun = [line for line in lines(folder / "attempts.jsonl") if line["event"] == "begin"]
    assert [(line["slurm_job"], line["restart"]) for line in begun] == [(job, 0), (job, 1)]
    assert site.status("s")[0] == 0


def test_a_requeued_job_of_two_ranks_ends_as_one_that_was_never_stopped(site: Site) -> None:
    nodes = 2 if site.layout.networked else 1
    ranks = (f"cluster.nodes={nodes}", f"cluster.ranks_per_node={2 // nodes}")
    done = site.launch("cluster=slurm_ddp", *paced(site), *ranks, PACE="0.8")
    assert done.returncode == 0, done.stdout
    folder = site.under_way("s")
    job = site.job("s")
    site.slurm("scontrol", "requeue", job)
    done = site.launch("cluster=slurm_ddp", *paced(site), *ranks, "study=whole")
    assert done.returncode == 0, done.stdout
    site.wait("s", "whole")
    assert site.states(job)[-1] == "COMPLETED"
    assert len([line for line in lines(folder / "attempts.jsonl") if line["event"] == "begin"]) == 2
    assert_went_on_in_mid_epoch(folder)
    assert_same_run(folder, site.run_folder("whole"))


def test_a_job_whose_time_is_up_saves_comes_back_and_finishes(site: Site) -> None:
    # SLURM may send the signal a minute before it is due: the run is long enough to get it in any case.
    limits = ("cluster.timeout_min=2", "cluster.signal_delay_s=45")
    site.submit(*paced(site), *limits, "cluster.partition=apart", "cluster.sbatch={nodelist: n4}", PACE="4.5")
    folder = site.under_way("s", epoch=1)
    until(lambda: "preempted" in dict(events(folder)).values(), "the signal", site.describe)
    site.wait("s")
    job = site.job("s")
    assert site.states(job)[-1] == "COMPLETED"
    assert len(site.states(job)) > 1
    assert events(folder)[:2] == [(1, "begin"), (1, "preempted")]
    assert events(folder)[-1][1] == "done"
    assert_went_on_in_mid_epoch(folder)
    assert_same_run(folder, uninterrupted(site))


def test_a_signal_that_comes_when_all_is_done_does_no_harm(site: Site) -> None:
    site.submit(*paced(site), "recipe.epochs=1")
    folder = site.under_way("s", epoch=1)
    until(lambda: read(folder / "status.json")["state"] == "done", "the result", site.describe, pause=0.05)
    # while the process ends, which takes some seconds with all that it has imported
    for _ in range(20):
        subprocess.run(
            ["scancel", "--signal=USR2", site.job("s")], env=site.environment(), capture_output=True
        )
        time.sleep(0.2)
    site.wait("s")
    assert site.states(site.job("s"))[-1] == "COMPLETED"
    assert site.status("s")[0] == 0


def test_a_job_that_may_not_come_back_again_fails_when_its_time_is_up(site: Site) -> None:
    limits = ("cluster.timeout_min=1", "cluster.signal_delay_s=30", "cluster.max_requeues=0")
    site.submit(*paced(site), *limits, "cluster.partition=apart", "cluster.sbatch={nodelist: n4}", PACE="10")
    site.wait("s")
    assert site.states(site.job("s")) in (["FAILED"], ["TIMEOUT"])
    code, status = site.status("s")
    (cell,) = status["cells"]
    assert (code, cell["state"]) == (1, "failed")
    assert "time" in cell["error"]
    site.submit(*paced(site))
    site.wait("s")
    assert_same_run(site.run_folder("s"), uninterrupted(site))


def test_a_cancelled_job_is_named_and_the_same_command_repairs_it(site: Site) -> None:
    command = (*paced(site), "seed=0,1", "cluster.array_parallelism=1")
    site.submit(*command, PACE="1")
    site.under_way("s", epoch=1)
    site.slurm("scancel", *sorted({job.partition("_")[0] for job in site.jobs("s").values()}))
    site.wait("s")
    code, status = site.status("s")
    assert code == 1
    assert [cell["state"] for cell in status["cells"]] == ["cancelled", "cancelled"]
    printed = site.submit(*command)
    assert "2" in printed
    site.wait("s")
    code, status = site.status("s")
    assert (code, status["counts"]) == (0, {"done": 2})
    assert_same_run(site.run_folder("s", "seed0"), uninterrupted(site))


def test_a_node_that_dies_is_named_and_the_run_ends_all_the_same(site: Site) -> None:
    command = (*paced(site), "cluster.partition=apart", "cluster.sbatch={nodelist: n5}")
    site.submit(*command, PACE="1")
    folder = site.under_way("s", epoch=2)
    job = site.job("s")
    with power_cut(site, "n5"):
        until(lambda: "NODE_FAIL" in site.states(job), "SLURM to miss the node", site.describe)
        site.until_state("s", "preempted", "queued")
        assert read(folder / "status.json")["state"] == "running", "nobody was there to say that it is not"
        # SLURM keeps the job for the node: the same command must not make a second one
        site.submit(*command)
        assert site.job("s") == job
    site.wait("s")
    assert site.states(job) == ["NODE_FAIL", "COMPLETED"]
    assert site.status("s")[0] == 0
    assert_went_on_in_mid_epoch(folder)
    assert_same_run(folder, uninterrupted(site))


def test_a_node_that_dies_under_a_job_that_does_not_come_back(site: Site) -> None:
    command = (*paced(site), "cluster.partition=apart")
    site.submit(*command, "cluster.sbatch={nodelist: n6}", PACE="1")
    folder = site.under_way("s", epoch=2)
    job = site.job("s")
    site.slurm("scontrol", "update", f"jobid={job}", "requeue=0")
    with power_cut(site, "n6"):
        until(lambda: site.states(job) == ["NODE_FAIL"], "SLURM to miss the node", site.describe)
        site.until_state("s", "failed")
        code, status = site.status("s")
        (cell,) = status["cells"]
        assert (code, cell["state"]) == (1, "failed"), cell
        assert "node died" in cell["error"]
        site.submit(*command)  # on whatever node is alive
        assert site.job("s") != job
        site.wait("s")
    assert site.status("s")[0] == 0
    assert_same_run(folder, uninterrupted(site))


def test_a_checkpoint_that_is_gone_is_no_reason_to_hang(site: Site) -> None:
    """A run whose folder a person removes while its job waits to come back begins anew."""
    site.submit(*paced(site), "recipe.epochs=4", PACE="0.8")
    folder = site.under_way("s", epoch=1)
    job = site.job("s")
    site.slurm("scontrol", "requeuehold", job)
    until(lambda: site.queued([job]).get(job) in ("PENDING", "SPECIAL_EXIT"), "the hold", site.describe)
    until(lambda: not (folder / "run.lock").exists(), "the end of the attempt", site.describe)
    shutil.rmtree(folder)
    site.slurm("scontrol", "release", job)
    site.wait("s")
    assert site.status("s")[0] == 0
