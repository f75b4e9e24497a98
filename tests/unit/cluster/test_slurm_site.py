"""What a cluster offers, read from SLURM's programs, and whether a job fits into it."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm

from gda.cluster.slurm.check import check_together
from gda.cluster.slurm.command import ask, submitting
from gda.cluster.slurm.fit import Asked, check_site, warnings_of
from gda.cluster.slurm.sbatch_check import check_flags, check_programs, check_submission, refusal
from gda.cluster.slurm.site import NodeGroup, Partition, Site, gpus_of, look_at_site, minutes_of


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm.make(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{fake.bin}:{os.defpath}")
    for name in list(os.environ):
        if name.startswith(("SLURM_", "SBATCH_")):
            monkeypatch.delenv(name)
    return fake


SITE = Site(
    partitions=(
        Partition("gpu", default=True, minutes=2880, nodes=2),
        Partition("cpu"),
        Partition("old", state="DRAIN"),
        Partition("night", state="DOWN", minutes=600),
    ),
    node_groups=(
        NodeGroup("gpu", 3, cpus=16, memory_mb=64000, gpus=4),
        NodeGroup("gpu", 1, cpus=32, memory_mb=128000, gpus=0),
        NodeGroup("cpu", 8, cpus=64, memory_mb=256000, gpus=0),
        NodeGroup("night", 1, cpus=8, memory_mb=0, gpus=8),
    ),
    accounts=("vision", "default"),
    qualities=("normal", "long"),
)


def asked(**changes: Any) -> Asked:
    plain = {"nodes": 1, "tasks_per_node": 1, "cpus_per_task": 4, "gpus_per_node": 1, "timeout_min": 240}
    return Asked.by({**plain, **changes})


def faults(**changes: Any) -> list[tuple[str, str, str]]:
    return [(fault.where, fault.what, fault.fix) for fault in check_site(asked(**changes), SITE)]


def test_a_site_is_read_from_slurms_programs(slurm: FakeSlurm) -> None:
    site = look_at_site()
    assert site.by_name["gpu"] == Partition("gpu", default=True, state="UP", minutes=2880, nodes=2)
    assert site.by_name["cpu"] == Partition("cpu")
    assert site.default is site.by_name["gpu"]
    assert site.nodes_of("gpu") == [NodeGroup("gpu", 3, 16, 64000, 4)]
    assert site.nodes_of("cpu") == [NodeGroup("cpu", 8, 64, 256000, 0)]
    assert site.accounts == ("vision", "default")
    assert site.qualities == ("normal", "long")
    assert site.largest_array == 1000


def test_programs_that_fail_or_are_missing_tell_nothing(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slurm.folder / "partitions").unlink()
    slurm.say("config", "MaxArraySize            = 17")
    (Path(slurm.bin) / "sinfo").unlink()
    monkeypatch.setenv("PATH", f"{slurm.bin}:{without_slurm(slurm)}")
    site = look_at_site()
    assert (site.partitions, site.node_groups, site.default) == ((), (), None)
    assert site.accounts == ("vision", "default")
    assert site.largest_array == 16
    assert check_site(asked(partition="anything", nodes=99), site) == []


def without_slurm(slurm: FakeSlurm) -> str:
    """A folder with what the scripts need, on machines with a SLURM of their own, too."""
    folder = slurm.folder / "system"
    folder.mkdir()
    for name in ("bash", "cat"):
        path = next(Path(place) / name for place in os.defpath.split(":") if (Path(place) / name).exists())
        (folder / name).symlink_to(path)
    return str(folder)


def test_a_program_that_hangs_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "scontrol"
    script.write_text("#!/bin/bash\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    answer = ask("scontrol", timeout=0.2)
    assert not answer.ok
    assert answer.complaint == "scontrol gave no answer within 0.2 s"


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("UNLIMITED", None), ("", None), ("60", 60), ("90:00", 90), ("90:31", 91), ("2:00:00", 120),
        ("1-00:00:00", 1440), ("2-12", 3600), ("7-01:30", 10170),
    ],
)  # fmt: skip
def test_time_limits(text: str, minutes: int | None) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [
        ("(null)", 0), ("gpu:2", 2), ("gpu", 1), ("gpu:a100:4(S:0-1)", 4), ("craynetwork:4", 0), ("", 0),
        ("gpu:a100:4(S:0-1),gpu:h100:2(S:0,2),shard:8", 6),
    ],
)  # fmt: skip
def test_gpus(resources: str, gpus: int) -> None:
    assert gpus_of(resources) == gpus


def test_what_fits_has_no_fault() -> None:
    assert faults() == []
    assert faults(partition="gpu", account="vision", qos="long", nodes=2, gpus_per_node=4, mem_gb=62) == []
    assert faults(partition="cpu", gpus_per_node=0, nodes=8, cpus_per_task=64, timeout_min=10**6) == []
    assert faults(partition="night", gpus_per_node=8, mem_gb=10**6) == []  # its memory is not known


def test_unknown_names_are_named_with_the_nearest() -> None:
    assert faults(partition="gpus", account="visoin", qos="lnog") == [
        ("cluster.partition", "there is no partition 'gpus'; did you mean 'gpu'?", "cluster.partition=gpu"),
        ("cluster.account", "you have no account 'visoin'; did you mean 'vision'?", "cluster.account=vision"),
        ("cluster.qos", "there is no quality of service 'lnog'; did you mean 'long'?", "cluster.qos=long"),
    ]
    assert [where for where, _, _ in faults(partition="gpu,nope,never")] == ["cluster.partition"] * 2


def test_limits_of_the_partition() -> None:
    assert faults(timeout_min=3000, nodes=4) == [
        (
            "cluster.timeout_min",
            "3000 minutes are more than partition gpu allows, 2880",
            "cluster.timeout_min=2880",
        ),
        ("cluster.nodes", "4 are more than partition gpu allows for a job, 2", "cluster.nodes=2"),
        ("cluster.nodes", "partition gpu has 3 nodes as large as the job asks for, not 4", "cluster.nodes=3"),
    ]
    assert faults(timeout_min=3000, qos="long") == []  # which may lift them
    assert faults(partition="old") == [
        ("cluster.partition", "old takes no jobs now (SLURM: DRAIN)", "cluster.partition=cpu")
    ]


def test_nodes_that_are_too_small() -> None:
    assert faults(gpus_per_node=8, tasks_per_node=8, cpus_per_task=5, mem_gb=200) == [
        (
            "cluster.gpus_per_node",
            "a node of partition gpu has 4 GPUs at most, and the job asks for 8; night would do",
            "cluster.partition=night",
        ),
        (
            "cluster.cpus_per_task",
            "a node of partition gpu has 32 CPUs at most, and the job asks for 40 (8 processes)",
            "cluster.cpus_per_task=4",
        ),
        ("cluster.mem_gb", "a node of partition gpu has 125.0 GB at most", "cluster.mem_gb=125"),
    ]
    assert faults(partition="cpu", nodes=9, gpus_per_node=9) == [
        (
            "cluster.gpus_per_node",
            "a node of partition cpu has no GPUs, and the job asks for 9",
            "cluster.gpus_per_node=0",
        )
    ]
    # Each would do alone, but no node has both.
    assert faults(cpus_per_task=32, gpus_per_node=1) == [
        ("cluster.nodes", "partition gpu has 0 nodes as large as the job asks for, not 1", "")
    ]


def test_any_of_several_partitions_will_do() -> None:
    assert faults(partition="cpu,gpu", gpus_per_node=4) == []
    assert [where for where, _, _ in faults(partition="cpu,old", gpus_per_node=4)] == [
        "cluster.gpus_per_node"
    ]


def test_without_a_default_a_partition_has_to_be_named() -> None:
    site = Site(partitions=(Partition("b"), Partition("a")))
    (fault,) = check_site(asked(), site)
    assert (fault.where, fault.fix) == ("cluster.partition", "cluster.partition=a")
    assert check_site(asked(partition="b"), site) == []


def test_the_environments_partition_is_checked_where_the_config_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "cpu")
    assert [where for where, _, _ in faults(partition=None)] == ["cluster.gpus_per_node"]
    assert faults(partition="gpu") == []


def test_flags_that_belong_elsewhere() -> None:
    found = check_flags(
        {"partition": "gpu", "mem": "4G", "array": "0-3", "--time": "1:00", "constraint": "a100"}
    )
    assert [(fault.where, fault.fix) for fault in found] == [
        ("cluster.sbatch.partition", "cluster.partition=gpu"),
        ("cluster.sbatch.mem", "cluster.mem_gb=4G"),
        ("cluster.sbatch.array", "~cluster.sbatch.array"),
        ("cluster.sbatch.--time", "cluster.timeout_min=MINUTES"),
    ]
    assert check_flags(None) == []


def test_no_sbatch_on_the_path(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert check_programs() == []
    monkeypatch.setenv("PATH", str(tmp_path))
    (fault,) = check_programs()
    assert str(fault) == (
        "cluster: there is no sbatch on PATH: run this on a login node of the cluster. Try: cluster=local"
    )


def test_sbatch_itself_is_asked_last(slurm: FakeSlurm) -> None:
    assert check_submission("#!/bin/bash\n#SBATCH --nodes=1\n", []) == []
    assert (slurm.folder / "checked.sh").read_text() == "#!/bin/bash\n#SBATCH --nodes=1\n"
    slurm.say(
        "refuse_check",
        "sbatch: error: Job rejected: name a project",
        "allocation failure: Unspecified error",
    )
    (fault,) = check_submission("#!/bin/bash\n", [])
    assert str(fault) == ("cluster: sbatch refuses the job: Job rejected: name a project; Unspecified error")
    assert slurm.submitted() == {}


def test_that_no_node_would_do_may_be_so_for_now_only(
    slurm: FakeSlurm, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("gda"), "propagate", True)
    slurm.say("refuse_check", "allocation failure: Requested node configuration is not available")
    with caplog.at_level(logging.INFO, "gda"):
        assert check_submission("#!/bin/bash\n", []) == []
    (line,) = set(caplog.messages)
    assert "Requested node configuration is not available" in line


@pytest.mark.parametrize(
    ("said", "where"),
    [
        ("allocation failure: Invalid partition name specified", "cluster.partition"),
        (
            "allocation failure: Invalid account or account/partition combination specified",
            "cluster.account",
        ),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", "cluster.qos"),
        ("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy", "cluster.qos"),
        ("sbatch: error: Invalid generic resource (gres) specification", "cluster.gpus_per_node"),
        (
            "sbatch: error: Batch job submission failed: Requested time limit is invalid",
            "cluster.timeout_min",
        ),
        ("sbatch: error: Memory specification can not be satisfied", "cluster.mem_gb"),
        ("allocation failure: Invalid feature specification", "cluster.sbatch"),
        ("sbatch: unrecognized option '--colour=red'", "cluster.sbatch"),
        ("sbatch: error: something new", "cluster"),
    ],
)
def test_a_refusal_names_the_key_that_decides_it(said: str, where: str) -> None:
    fault = refusal([said, 'Try "sbatch --help" for more information'])
    assert fault.where == where
    assert said.rpartition(": ")[2] in fault.what
    assert "Try" not in fault.what


def test_a_run_root_that_nodes_do_not_share_is_warned_of(tmp_path: Path) -> None:
    (line,) = warnings_of(Path("/dev/shm/runs"))
    assert "/dev/shm/runs is a folder that every node has for itself" in line
    assert warnings_of(Path("/home/somebody/runs")) == []
    assert warnings_of(Path("/tmporary/runs")) == []


def test_the_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SBATCH_QOS", "long")
    before = dict(os.environ)
    with submitting(["qos"]):
        assert "SLURM_JOB_ID" not in os.environ
        assert "SBATCH_QOS" not in os.environ
    assert dict(os.environ) == before
    with pytest.raises(ValueError, match="of its own"), submitting(["qos"]):
        raise ValueError("of its own")
    assert dict(os.environ) == before
    with submitting([]):
        assert os.environ["SBATCH_QOS"] == "long"


def test_values_that_do_not_go_together() -> None:
    fine = {"side_by_side": 4, "nodes": 1, "ranks_per_node": 1, "signal_delay_s": 119, "timeout_min": 2}
    assert check_together(fine) == []
    (fault,) = check_together({**fine, "ranks_per_node": 2})
    assert (fault.where, fault.fix) == ("cluster.side_by_side", "cluster.side_by_side=1")
    (fault,) = check_together({**fine, "signal_delay_s": 120})
    assert (fault.where, fault.fix) == ("cluster.timeout_min", "cluster.signal_delay_s=30")
