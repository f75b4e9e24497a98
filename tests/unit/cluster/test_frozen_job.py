import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from frozen import SWEEP, frozen, planned

from gda.cluster.frozen_job import CODE_FILE, freeze_code, read_job, require_same_code, write_job
from gda.errors import UserError


def test_a_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    teacher = planned(tmp_path / "teachers/t/seed0", {"a": 1}, needed=("last.pt", "best.pt"))
    cell = planned(tmp_path / "main/c/seed1", {"a": 2}, needs=(teacher.folder,))
    job = frozen(
        tmp_path,
        [teacher, cell],
        side_by_side=3,
        ranks=2,
        max_requeues=7,
        allow_changed_code=True,
    )
    assert (job.sweep, job.side_by_side, job.ranks, job.max_requeues) == (SWEEP, 3, 2, 7)
    assert job.allow_changed_code
    assert job.sweep_folder == tmp_path / "main/sweeps/2026-01-01_00-00-00"
    first, second = job.runs
    assert (first.folder, first.is_input, first.needed) == (teacher.folder, True, ("last.pt", "best.pt"))
    assert (second.folder, second.title) == (cell.folder, cell.title)
    assert (second.is_input, second.needed, second.needs) == (False, (), (teacher.folder,))


@pytest.mark.parametrize(
    "value",
    [
        {"clip": math.inf, "floor": -math.inf},
        {"milestones": {10: 0.1, 20: 0.01}, "by": {True: "a", 1.5: "b"}},
        {"!pairs": 1, "b": {"!pairs": "inf"}},
        [[], {}, None, True, 1, 0.1, "nan", "é", 1e-300],
        {"deep": [{"x": {1: [math.inf]}}]},
    ],
)
def test_a_config_comes_back_with_every_type(tmp_path: Path, value: Any) -> None:
    config = {"value": value}
    (run,) = frozen(tmp_path, [planned(tmp_path / "main/c/seed0", config)]).runs
    assert run.config == config
    assert repr(run.config) == repr(config)  # 1, 1.0 and True are equal, and not the same


def test_nan_comes_back_too(tmp_path: Path) -> None:
    (run,) = frozen(tmp_path, [planned(tmp_path / "main/c/seed0", {"x": math.nan})]).runs
    assert math.isnan(run.config["x"])


def test_the_file_is_strict_json_with_what_the_contract_names(tmp_path: Path) -> None:
    job = frozen(tmp_path, [planned(tmp_path / "main/c/seed0", {"x": math.inf})])

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    record = json.loads(job.file.read_text(), parse_constant=refuse)
    assert record["format"] == 1
    assert record["runs"][0]["folder"] == str(tmp_path / "main/c/seed0")
    assert set(record["runs"][0]) >= {"folder", "title", "is_input", "config"}


def test_a_real_config_survives(tmp_path: Path, compose: Callable[..., dict[str, Any]]) -> None:
    config = compose()
    (run,) = frozen(tmp_path, [planned(tmp_path / "main/c/seed0", config)]).runs
    assert run.config == config


def test_a_missing_job_says_that_the_nodes_must_share_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"0\.json is not there.*file system that the nodes share.*runs="):
        read_job(tmp_path / "jobs/0.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 2, "runs": []}', "format 2, and this version of the code reads 1"),
        ('{"runs": []}', "format None"),
        ('{"format": 1, "ru', "no valid JSON"),
        ("[]", "no JSON object"),
        ('{"format": 1}', "'runs'"),
        ('{"format": 1, "sweep": "main/1", "runs": [{"folder": "/x"}]}', "'title'"),
        ('{"format": 1, "sweep": "main/1", "runs": [], "side": 1}', "side"),
    ],
)
def test_a_file_that_is_no_job_says_why(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "0.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_job(path)
    assert said in str(caught.value)
    assert "Issue the command again" in str(caught.value)


def test_a_job_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_job(Path("sweeps/1/jobs/0.json"), [], sweep=SWEEP)
    assert path == tmp_path / "sweeps/1/jobs/0.json"


def test_unchanged_code_is_let_through(tmp_path: Path) -> None:
    job = frozen(tmp_path, [])
    freeze_code(job.sweep_folder, [{"term": {"_target_": "gda.distillers.kd.KD"}}])
    require_same_code(job)


def test_changed_code_is_named_with_what_to_do(tmp_path: Path) -> None:
    job = frozen(tmp_path, [])
    record = json.loads(freeze_code(job.sweep_folder, []).read_text())
    changed = sorted(name for name in record["files"] if name.endswith(".py"))[:7]
    record["files"].update(dict.fromkeys(changed, "0" * 64))
    (job.sweep_folder / CODE_FILE).write_text(json.dumps(record))
    with pytest.raises(UserError) as caught:
        require_same_code(job)
    said = str(caught.value)
    assert f"{', '.join(changed[:5])} and 2 more" in said
    assert record["submitted"] in said
    assert "Issue the command again" in said
    assert "cluster.allow_changed_code=true" in said
    require_same_code(frozen(tmp_path, [], allow_changed_code=True))


def test_a_users_own_module_is_frozen_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "own_term_of_a_frozen_job.py"
    module.write_text("class Term: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    job = frozen(tmp_path, [])
    freeze_code(job.sweep_folder, [{"a": {"b": [{"_target_": f"{module.stem}.Term"}]}}])
    module.write_text("class Term: x = 1\n")
    with pytest.raises(UserError, match=r"own_term_of_a_frozen_job\.py"):
        require_same_code(job)


def test_a_torn_record_of_the_code_stops_the_job(tmp_path: Path) -> None:
    job = frozen(tmp_path, [])
    freeze_code(job.sweep_folder, []).write_text('{"files": ')
    with pytest.raises(UserError, match="no valid JSON"):
        require_same_code(job)
