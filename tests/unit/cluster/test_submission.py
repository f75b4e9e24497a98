import json
from pathlib import Path

import pytest

from gda.cluster.json_record import Unreadable
from gda.cluster.state.submission import (
    Submission,
    SubmittedJob,
    read_submission,
    submissions_of,
    sweeps_of,
    write_submission,
)

JOBS = (
    SubmittedJob("12_0", "jobs/0.json", ("/runs/demo/a/seed0", "/runs/demo/a/seed1"), "/runs/log"),
    SubmittedJob("13", "jobs/1.json", ("/runs/demo/b/seed0",), ""),
)


def sweep(study: Path, name: str) -> Path:
    folder = study / "sweeps" / name
    folder.mkdir(parents=True)
    return folder


def test_a_submission_reads_back_as_it_was_written(tmp_path):
    folder = sweep(tmp_path, "2026-01-01_00-00-00")
    written = Submission("2026-01-01T00:00:00+0000", JOBS)
    path = write_submission(folder, written)
    assert path == folder / "submission.json"
    assert read_submission(folder) == Submission(
        "2026-01-01T00:00:00+0000", JOBS, sweep="2026-01-01_00-00-00", cluster="slurm"
    )


def test_the_file_is_the_documented_one(tmp_path):
    write_submission(sweep(tmp_path, "s"), Submission("now", JOBS[1:]))
    assert json.loads((tmp_path / "sweeps/s/submission.json").read_text()) == {
        "format": 1,
        "cluster": "slurm",
        "submitted": "now",
        "jobs": [{"job": "13", "file": "jobs/1.json", "runs": ["/runs/demo/b/seed0"], "log": ""}],
    }


def test_submissions_come_oldest_first_and_the_tenth_of_a_second_after_its_second(tmp_path):
    names = ["2026-01-02_00-00-00", "2026-01-01_00-00-00_10", "2026-01-01_00-00-00", "2026-01-01_00-00-00_2"]
    for name in names:
        write_submission(sweep(tmp_path, name), Submission(name, JOBS))
    assert [each.submitted for each in submissions_of(tmp_path)] == [names[2], names[3], names[1], names[0]]
    assert [path.name for path in sweeps_of(tmp_path)] == [names[2], names[3], names[1], names[0]]


def test_a_study_without_sweeps_or_submissions_has_none(tmp_path):
    assert submissions_of(tmp_path / "nowhere") == []
    sweep(tmp_path, "2026-01-01_00-00-00")
    assert submissions_of(tmp_path) == []
    assert read_submission(tmp_path / "sweeps" / "2026-01-01_00-00-00") is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"format": 2, "jobs": []}', "format 2; this version reads 1"),
        ('{"jobs": []}', "format None"),
        ('{"format": 1}', "no list of jobs"),
        ('{"format": 1, "jobs": [{"job": "1"}]}', "without its id or its runs"),
        ('{"format": 1, "jobs": [{"runs": []}]}', "without its id or its runs"),
        ('{"format": 1, "jobs": [7]}', "without its id or its runs"),
        ('{"format": 1, "jo', "no valid JSON"),
        ("[]", "no JSON object"),
        ("\udcff", "no valid JSON"),
    ],
)
def test_a_submission_that_cannot_be_used_says_why_and_hides_no_other(tmp_path, content, reason):
    write_submission(sweep(tmp_path, "2026-01-01_00-00-00"), Submission("first", JOBS))
    damaged = sweep(tmp_path, "2026-01-02_00-00-00")
    (damaged / "submission.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(Unreadable, match=reason):
        read_submission(damaged)
    assert [each.submitted for each in submissions_of(tmp_path)] == ["first"]
