import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import gda
from gda.tracking import git_state, provenance


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
    assert git == {
        "branch": "trunk",
        "dirty": False,
        "diff_sha256": None,
        "diff_truncated": False,
        "untracked": [],
    }
    assert git_state.working_diff() == ""


def test_a_changed_checkout(checkout: Path) -> None:
    (checkout / "__init__.py").write_text("a = 2\n")
    (checkout / "new.py").touch()
    git = provenance.collect_provenance()["git"]
    diff = git_state.working_diff()
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
    assert git_state.working_diff() == ""


def test_the_difference_lies_beside_the_run(checkout: Path, tmp_path: Path) -> None:
    (checkout / "__init__.py").write_text("a = 2  # \u00e9\n")
    (checkout / "weights.bin").write_bytes(bytes(range(256)))
    subprocess.run(["git", "add", "."], cwd=checkout, check=True)
    before = tmp_path / "before"
    subprocess.run(["git", "worktree", "add", "-q", str(before), "HEAD"], cwd=checkout, check=True)
    git_state.write_working_diff(tmp_path)
    diff = tmp_path / "code.diff"
    recorded = provenance.collect_provenance()["git"]
    assert hashlib.sha256(diff.read_bytes()).hexdigest() == recorded["diff_sha256"]
    assert not recorded["diff_truncated"]
    subprocess.run(["git", "apply", str(diff)], cwd=before, check=True)
    for name in ("__init__.py", "weights.bin"):
        assert (before / "gda" / name).read_bytes() == (checkout / name).read_bytes()

    subprocess.run(["git", "reset", "-q", "--hard"], cwd=checkout, check=True)
    git_state.write_working_diff(tmp_path)  # a later attempt, with the code as it was committed
    assert not diff.exists()


@pytest.mark.parametrize("line", ["x = 1  # a line like any other\n", "x" * 100_000 + "\n", "x"])
def test_a_long_difference_is_cut(checkout: Path, tmp_path: Path, line: str) -> None:
    (checkout / "__init__.py").write_text(line * (1 + 1_200_000 // len(line)))
    git_state.write_working_diff(tmp_path)
    diff = git_state.working_diff().encode()
    recorded = provenance.collect_provenance()["git"]
    assert recorded["diff_truncated"]
    assert recorded["diff_sha256"] == hashlib.sha256(diff).hexdigest()
    kept = (tmp_path / "code.diff").read_bytes()
    assert diff.startswith(kept)
    assert kept.endswith(b"\n")
    if line.endswith("\n"):
        assert 1_000_000 - len(line) <= len(kept) <= 1_000_000


def test_the_hash_of_a_config_is_that_of_its_file(compose) -> None:
    config = {**compose("recipe.lr=1e-05"), "study": "été"}
    digest = provenance.collect_provenance(config)["config_sha256"]
    text = yaml.safe_dump(config, sort_keys=False)
    assert provenance.config_sha256(yaml.safe_load(text)) == digest
    assert provenance.config_sha256(dict(reversed(config.items()))) == digest
    assert provenance.config_sha256({**config, "seed": config["seed"] + 1}) != digest
    assert provenance.collect_provenance()["config_sha256"] is None


def test_slurm_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "SLURM_JOB_ID": "42",
        "SLURM_RESTART_COUNT": "1",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NTASKS": "8",
        "SLURM_JOB_ACCOUNT": "lab",
        "SLURM_JOB_GPUS": "0,1",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_CLUSTER_NAME": "big",
        "SLURM_SUBMIT_HOST": "login1",
    }
    for name in provenance.SLURM_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JWT", "a secret")
    assert provenance.collect_provenance()["slurm"] == given


def test_what_torch_and_the_driver_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU, as its driver and torch describe themselves."""
    import torch

    said = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
    opened = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57.08  Release Build\n"
    real = Path.read_text

    def driver(text: str | None) -> None:
        def read_text(path: Path, *args: object, **kwargs: object) -> str:
            if path == Path("/proc/driver/nvidia/version"):
                if text is None:
                    raise FileNotFoundError(path)
                return text
            return real(path, *args, **kwargs)

        monkeypatch.setattr(Path, "read_text", read_text)

    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    driver(said)
    found = provenance.collect_provenance()["cuda"]
    assert found == {"runtime": "12.8", "cudnn": "91002", "driver": "550.54.15"}
    driver(opened + "GCC version: gcc version 12.2.0\n")
    assert provenance.collect_provenance()["cuda"]["driver"] == "575.57.08"
    driver(None)
    assert provenance.collect_provenance()["cuda"] == {"runtime": "12.8", "cudnn": None, "driver": None}
    monkeypatch.setitem(sys.modules, "torch", None)
    assert provenance.collect_provenance()["cuda"]["runtime"] is None


def test_ranks_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch.distributed as distributed

    assert provenance.collect_provenance()["ranks"] == 1
    store = f"file://{tmp_path}/store"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        monkeypatch.setattr(distributed, "get_world_size", lambda: 4)
        assert provenance.collect_provenance()["ranks"] == 4
    finally:
        distributed.destroy_process_group()
