import time

import pytest
from study_folders import FakeSlurm

from gda.cluster.state.queue import JobState, Queue, ask_queue, job_states


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return FakeSlurm(tmp_path / "bin", monkeypatch)


def test_the_queue_tells_state_reason_restarts_and_time(slurm):
    long_reason = "ReqNodeNotAvail, UnavailableNodes:a[1-3]"
    slurm.says(
        queue={
            "7_0": JobState("RUNNING", restarts=2, seconds=93784, number="8"),
            "7_1": JobState("PENDING", "Dependency", number="7"),
            "9": JobState("PENDING", long_reason),
        }
    )
    found = job_states(["7_0", "7_1", "9"])
    assert found == {
        "7_0": JobState("RUNNING", restarts=2, seconds=93784, number="8"),
        "7_1": JobState("PENDING", "Dependency", number="7"),
        "9": JobState("PENDING", long_reason, number="9"),
    }
    assert all(state.alive for state in found.values())
    assert [state.pending for state in found.values()] == [False, True, True]


def test_one_call_of_squeue_and_one_of_sacct_for_the_jobs_that_it_does_not_know(slurm):
    slurm.says(
        queue={"7_0": JobState("RUNNING")},
        accounts={"7_1": ("FAILED", 12), "3": ("CANCELLED by 1000", 0), "4": ("OUT_OF_MEMORY", 5)},
    )
    found = job_states(["7_1", "7_0", "4", "3", "5"])
    assert found["7_1"] == JobState("FAILED", seconds=12, number="7_1")
    assert found["3"].state == "CANCELLED"
    assert found["3"].unstarted
    assert not found["4"].alive
    assert "5" not in found
    assert [call.split()[0] for call in slurm.calls] == ["squeue", "sacct"]
    assert "-j 3,4,5,7 " in slurm.calls[0]
    assert "-r -t all" in slurm.calls[0]  # each task of an array; jobs that have just ended, too
    assert "-j 3,4,5,7 " in slurm.calls[1]  # the whole array: only its number says where 7_1 is


def test_accounts_are_not_asked_when_the_queue_knows_all(slurm):
    slurm.says(queue={"1": JobState("COMPLETED")}, accounts={"1": ("FAILED", 1)})
    assert job_states(["1"])["1"].state == "COMPLETED"
    assert len(slurm.calls) == 1


def test_nothing_is_called_when_there_is_nothing_to_ask(slurm):
    assert ask_queue([]) == Queue()
    assert ask_queue(["", "none", "12; rm -r x", "1.batch"]) == Queue()
    assert slurm.calls == []


def test_a_job_that_left_the_queue_does_not_run_whatever_the_accounts_missed(slurm):
    slurm.says(accounts={"1": ("RUNNING", 100), "2": ("PENDING", 0)})
    assert job_states(["1", "2"]) == {}


def test_the_only_job_may_have_left_the_queue(slurm):
    slurm.says(accounts={"99": ("TIMEOUT", 60)})
    slurm.script("squeue", [], ending="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert ask_queue(["99"]) == Queue({"99": JobState("TIMEOUT", seconds=60, number="99")})


def test_a_cluster_without_accounts_forgets_jobs(slurm):
    slurm.script("sacct", [], ending="echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert ask_queue(["1"]) == Queue()
    slurm.remove("sacct")
    assert ask_queue(["1"]) == Queue()


def test_a_machine_without_slurm_says_so(slurm):
    slurm.remove("squeue", "sacct")
    assert ask_queue(["1"]) == Queue(fault="there is no squeue on this machine")
    assert job_states(["1"]) == {}


def test_a_queue_that_fails_says_why(slurm):
    why = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    slurm.script("squeue", [], ending=f"echo '{why}' >&2; exit 1")
    assert ask_queue(["1"]).fault == f"squeue failed: {why}"
    slurm.script("squeue", [], ending="exit 3")
    assert ask_queue(["1"]).fault == "squeue failed: exit code 3"


def test_a_queue_that_hangs_is_given_up(slurm):
    slurm.script("squeue", [], ending="exec /bin/sleep 60")
    started = time.monotonic()
    assert ask_queue(["1"], timeout=0.3).fault == "squeue gave no answer within 0.3 s"
    assert time.monotonic() - started < 30


def test_a_persons_own_filters_hide_no_job(slurm, monkeypatch):
    monkeypatch.setenv("SQUEUE_STATES", "SUSPENDED")
    monkeypatch.setenv("SACCT_FORMAT", "JobName")
    slurm.script("squeue", [], check='[ -z "$SQUEUE_STATES" ] || exit 1')
    slurm.script("sacct", ["1|1|FAILED|3"], check='[ -z "$SACCT_FORMAT" ] || exit 1')
    assert ask_queue(["1"]) == Queue({"1": JobState("FAILED", seconds=3, number="1")})


@pytest.mark.parametrize(
    ("state", "reason", "alive", "stuck", "orphaned"),
    [
        ("PENDING", "DependencyNeverSatisfied", True, True, False),
        ("PENDING", "Dependency", True, False, False),
        ("CANCELLED", "DependencyNeverSatisfied", False, False, True),
        ("CANCELLED", "", False, False, False),
        ("COMPLETING", "", True, False, False),
        ("SUSPENDED", "", True, False, False),
        ("REQUEUE_HOLD", "", True, False, False),
        ("NODE_FAIL", "", False, False, False),
        ("PREEMPTED", "", False, False, False),
    ],
)
def test_what_a_state_means(state, reason, alive, stuck, orphaned):
    job = JobState(state, reason)
    assert (job.alive, job.stuck, job.orphaned) == (alive, stuck, orphaned)
