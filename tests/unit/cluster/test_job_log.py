from pathlib import Path

import pytest

from gda.cluster.state.job_log import job_error, job_tail, last_error, run_traceback
from gda.cluster.state.run_evidence import moment

TRACEBACK = """\
Traceback (most recent call last):
  File "launch.py", line 1, in <module>
    work()
    ^^^^^^
ValueError: first

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "launch.py", line 3, in <module>
KeyError: 'second'
"""


def test_the_error_is_the_line_in_which_the_last_traceback_ends():
    assert (
        last_error(TRACEBACK + "\nsrun: error: node1: task 0: Exited with exit code 1\n")
        == "KeyError: 'second'"
    )
    assert last_error("all is well\n") is None
    assert last_error("Traceback (most recent call last):\n  File") is None  # torn


@pytest.mark.parametrize("prefix", ["[rank1]: ", "3: "])
def test_the_number_of_the_process_is_no_part_of_the_error(prefix):
    text = "".join(f"{prefix}{line}\n" for line in TRACEBACK.splitlines())
    assert last_error(text) == "KeyError: 'second'"


@pytest.mark.parametrize(
    ("text", "began", "error"),
    [
        (f"noise\n{TRACEBACK}slurmstepd: error: killed\n", True, "KeyError: 'second'"),
        ("hello\npython: can't open file 'x'\nbye\n", True, "python: can't open file 'x'"),
        ("\x1b[31mfatal error: boom\x1b[0m\n", True, "fatal error: boom"),
        (
            "epoch 3/10\nslurmstepd: error: Detected 1 oom_kill event\n",
            True,
            "slurmstepd: error: Detected 1 oom_kill event",
        ),
        ("epoch 3/10\n", True, None),
        (
            "The code is not what it was.\nsubmitit INFO (2026) - Exiting\n",
            False,
            "The code is not what it was.",
        ),
        ("", False, None),
    ],
)
def test_the_line_of_a_jobs_output_that_says_why_it_failed(tmp_path, text, began, error):
    (tmp_path / "job.out").write_text(text)
    assert job_error(str(tmp_path / "job.out"), began) == error


def test_errors_may_stand_in_a_file_beside_the_output(tmp_path):
    (tmp_path / "7_0_log.out").write_text("epoch 3/10\n")
    (tmp_path / "7_0_log.err").write_text(TRACEBACK)
    assert job_error(str(tmp_path / "7_0_log.out"), began=True) == "KeyError: 'second'"
    assert job_tail(str(tmp_path / "7_0_log.out")).endswith("KeyError: 'second'")


def test_a_log_that_is_not_there_or_is_no_text_says_nothing(tmp_path):
    assert job_error(str(tmp_path / "gone"), began=False) is None
    assert job_error("", began=False) is None
    assert job_tail(str(tmp_path)) is None
    (tmp_path / "bytes").write_bytes(b"\xff\xfe error \x00\n")
    assert "error" in job_error(str(tmp_path / "bytes"), began=True)


def test_only_the_end_of_a_huge_log_is_read(tmp_path):
    (tmp_path / "job.out").write_text("an early error\n" + "x" * 100 + "\n" + "fine\n" * 100_000)
    assert job_error(str(tmp_path / "job.out"), began=True) is None
    assert job_tail(str(tmp_path / "job.out")).splitlines() == ["fine"] * 30


def run_log(folder: Path, *records: str) -> None:
    (folder / "run.log").write_text("".join(f"{record}\n" for record in records))


def test_the_traceback_of_a_run_is_its_last_whole_record(tmp_path):
    run_log(
        tmp_path,
        "2026-01-01 10:00:00,000 DEBUG gda: failed:\nTraceback (most recent call last):\nOSError: old",
        f"2026-01-02 10:00:00,000 DEBUG gda: the run failed:\n{TRACEBACK}",
        "2026-01-02 10:00:01,000 INFO gda: good bye",
    )
    text = run_traceback(tmp_path)
    assert text.startswith("2026-01-02 10:00:00,000 DEBUG gda: the run failed:")
    assert "ValueError: first" in text  # the cause belongs to it
    assert "OSError" not in text
    assert "good bye" not in text


def test_a_traceback_of_an_earlier_attempt_does_not_count(tmp_path):
    run_log(tmp_path, f"2026-01-01 10:00:00,400 DEBUG gda: the run failed:\n{TRACEBACK}")
    assert run_traceback(tmp_path, since=moment("2026-01-01T10:00:00")) is not None
    assert run_traceback(tmp_path, since=moment("2026-01-01T10:00:05")) is None
    assert run_traceback(tmp_path / "nowhere") is None
