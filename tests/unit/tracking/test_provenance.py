import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gda
from gda.tracking import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of its own, in which the package seems to lie."""
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    package = tmp_path / "repository" / "gda"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("a = 1\n")
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["init", "-q", "-b", "trunk"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=package.parent, check=True)
    monkeypatch.setattr(gda, "__file__", str(package / "__init__.py"))
    return package


def test_everything_is_there_and_json_and_quick() -> None:
    start = time.monotonic()
    found = provenance.collect_provenance()
    assert time.monotonic() - start < 10
    assert json.loads(json.dumps(found)) == found
    assert set(found["versions"]) == set(provenance.PACKAGES)
    assert found["versions"]["gda"] == gda.__version__
    assert found["cpu"]["usable"] <= found["cpu"]["count"]
    assert found["command"] == sys.argv


def test_no_package_is_imported(python) -> None:
    script = (
        "import sys; from gda.tracking.provenance import collect_provenance; collect_provenance();"
        "print([name for name in ('torch', 'mlflow', 'numpy', 'timm') if name in sys.modules])"
    )
    output, errors = python(script).communicate(timeout=60)
    assert output.strip() == "[]", errors


def test_a_clean_checkout(checkout: Path) -> None:
    git = provenance.collect_provenance()["git"]
    assert len(git.pop("commit")) == 40
    assert git == {"branch": "trunk", "dirty": False, "diff_sha256": None, "untracked": []}
    assert provenance.working_diff() == ""


def test_a_changed_checkout(checkout: Path) -> None:
    (checkout / "__init__.py").write_text("a = 2\n")
    (checkout / "new.py").touch()
    git = provenance.collect_provenance()["git"]
    diff = provenance.working_diff()
    assert "+a = 2" in diff
    assert git["dirty"]
    assert git["diff_sha256"] == hashlib.sha256(diff.encode()).hexdigest()
    assert git["untracked"] == ["gda/new.py"]


def test_an_installed_package_has_no_commit(checkout: Path) -> None:
    (checkout.parent / ".gitignore").write_text("/venv/\n")
    installed = checkout.parent / "venv" / "gda"
    installed.mkdir(parents=True)
    gda.__file__ = str(installed / "__init__.py")  # the fixture puts it back
    assert provenance.collect_provenance()["git"] is None


@pytest.mark.parametrize("path", ["/nowhere", None])
def test_without_git_or_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    if path is None:
        monkeypatch.setattr(gda, "__file__", str(tmp_path / "__init__.py"))
    else:
        monkeypatch.setenv("PATH", path)
    assert provenance.collect_provenance()["git"] is None
    assert provenance.working_diff() == ""


def test_slurm_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    assert provenance.collect_provenance()["slurm"]["SLURM_JOB_ID"] == "42"
