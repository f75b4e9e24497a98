"""Runs of several processes under SLURM: on one node, on two, and with one that dies."""

import pytest
from sweeping import Site, assert_same, lines, read, unavailable

KD = ("study=s", "recipe.epochs=2", "distiller=kd", "teacher=resnet8", "alignment=gda")


def submit(site: Site, *words: str) -> None:
    done = site.launch("cluster=slurm_ddp", f"teacher.checkpoint={site.teacher}", *KD, *words)
    assert done.returncode == 0, done.stdout


def steps(site: Site, job: str) -> dict[str, tuple[str, str]]:
    """Nodes and tasks of a job's steps."""
    rows = site.slurm("sacct", "-n", "-P", "-j", job, "-o", "JobID,NNodes,NTasks").split()
    return {
        name.rpartition(".")[2]: (nodes, tasks) for name, nodes, tasks in (row.split("|") for row in rows)
    }


def test_two_ranks_on_one_node_and_on_two_make_the_same_run(site: Site) -> None:
    if not site.layout.networked:
        unavailable("nodes with networks of their own need namespaces, which are not permitted here")
    submit(site, "cluster.ranks_per_node=2")
    submit(site, "study=far", "cluster.nodes=2", "cluster.ranks_per_node=1")
    site.wait("s", "far")
    near, far = site.run_folder("s"), site.run_folder("far")
    assert near.parent.name == far.parent.name, "where the ranks are is no part of what a run is"
    assert steps(site, site.job("s"))["0"] == ("1", "2")
    assert steps(site, site.job("far"))["0"] == ("2", "2")
    assert (near / "metrics.jsonl").read_bytes() == (far / "metrics.jsonl").read_bytes()
    import torch

    assert_same(*(torch.load(folder / "last.pt", weights_only=True) for folder in (near, far)))
    for study in ("s", "far"):
        assert site.status(study)[0] == 0
        assert site.states(site.job(study)) == ["COMPLETED"]


def test_two_ranks_are_one_run(site: Site) -> None:
    submit(site, "cluster.ranks_per_node=2")
    site.wait("s")
    folder = site.run_folder("s")
    assert site.states(site.job("s")) == ["COMPLETED"]
    rows = lines(folder / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert [line["event"] for line in lines(folder / "attempts.jsonl")] == ["begin", "done"]
    # 900 test images, each counted once: a share of them is a whole number
    for row in rows[1:]:
        right = row["test_top1"] * 9
        assert right == pytest.approx(round(right), abs=1e-6)
    assert read(folder / "run.json")["ranks"] == 2
    # one process alone counts the same images
    alone = site.launch(*KD, "study=alone", f"teacher.checkpoint={site.teacher}")
    assert alone.returncode == 0, alone.stdout
    one = site.run_folder("alone")
    assert one.parent.name != folder.parent.name, "the number of ranks is part of what a run is"
    assert lines(one / "metrics.jsonl")[0] == pytest.approx(rows[0]), "the teacher on every image, once"


@pytest.mark.parametrize(
    ("method", "reason"), [("one_raises", "ArithmeticError: broken on purpose"), ("one_killed", "")]
)
def test_a_rank_that_dies_takes_the_job_down(site: Site, method: str, reason: str) -> None:
    submit(site, f"distiller={method}", "alignment=none", "cluster.ranks_per_node=2")
    site.wait("s")
    job, folder = site.job("s"), site.run_folder("s")
    assert site.states(job) == ["FAILED"]
    log = (folder / "run.log").read_text()
    assert "epoch 1/2" in log
    if reason:
        assert f"\n{reason}" in log
        assert "acting.py" in log, "the traceback of the rank that failed"
        assert read(folder / "status.json")["state"] == "failed"
    site.until_state("s", "failed")
    code, status = site.status("s")
    (cell,) = status["cells"]
    assert (code, cell["state"]) == (1, "failed")
    assert cell["error"]
    assert reason in cell["error"]
