import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gda.tracking.code_state import changed_files, code_files, targets_of

REPOSITORY = Path(__file__).parents[3]

# Hashes the packages of a copy of this project, which the test then changes.
IN_A_COPY = """
import json, sys
from pathlib import Path
from gda.tracking.code_state import changed_files, code_files
command, kept = sys.argv[1], Path(sys.argv[2])
if command == "submit":
    kept.write_text(json.dumps(code_files()))
else:
    print(json.dumps(changed_files(json.loads(kept.read_text()))))
assert not {"torch", "numpy", "hydra", "mlflow"} & set(sys.modules)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own folder on the path, with a package of that user in it."""
    folder = tmp_path / "project"
    write(folder / "my_package_a" / "__init__.py", "")
    source = "from .inner import kernel\nimport torch, my_helpers_a as m\n"
    write(folder / "my_package_a" / "terms.py", source)
    write(folder / "my_package_a" / "inner" / "kernel.py", "K = 1\n")
    write(folder / "my_package_a" / "images" / "1.png", "")
    write(folder / "my_package_a" / "images" / "deep" / "not_code.py", "")
    write(folder / "my_helpers_a.py", "from  json import loads\n")
    write(folder / "unrelated_a.py", "")
    monkeypatch.syspath_prepend(str(folder))
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    importlib.invalidate_caches()


def own(paths: list[str] | dict[str, str]) -> list[str]:
    """Leaves out this project's packages: somebody may be working in the checkout just now."""
    return [path for path in paths if not path.startswith(("gda/", "hydra_plugins/"))]


def test_a_config_names_its_targets() -> None:
    config = {
        "distiller": {"terms": {"a": {"_target_": "m.A", "inner": {"_target_": "m.B"}}, "b": None}},
        "transforms": [{"_target_": "m.C"}, ({"_target_": "m.D"}, 3), []],
        "task": {"_target_": "m.A"},
        "odd": {"_target_": None},
    }
    assert targets_of(config) == {"m.A", "m.B", "m.C", "m.D"}
    assert targets_of(None) == set()


def test_the_projects_own_packages(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for package in ("gda", "hydra_plugins"):
        shutil.copytree(REPOSITORY / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    write(copy / "hydra_plugins" / "of_somebody_else" / "plugin.py", "")
    kept = tmp_path / "code.json"

    def call(command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        arguments = [sys.executable, "-c", IN_A_COPY, command, str(kept)]
        done = subprocess.run(
            arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("submit")
    files = json.loads(kept.read_text())
    expected = {path.relative_to(copy).as_posix() for path in copy.rglob("*.py")}
    expected |= {path.relative_to(copy).as_posix() for path in (copy / "gda").rglob("*.yaml")}
    assert set(files) == expected - {"hydra_plugins/of_somebody_else/plugin.py"}
    assert "gda/config/identity_v1.yaml" in files
    assert files["gda/app.py"] == hashlib.sha256((copy / "gda" / "app.py").read_bytes()).hexdigest()
    assert json.loads(call("start")) == []

    with (copy / "gda" / "app.py").open("a") as file:
        file.write("# changed\n")
    (copy / "gda" / "config" / "identity_v1.yaml").unlink()
    write(copy / "gda" / "losses" / "new.py", "")
    (copy / "hydra_plugins" / "gda_launcher" / "local.py").write_text("")
    write(copy / "gda" / ".app.py.swp.py", "an editor's")
    assert json.loads(call("start")) == [
        "gda/app.py",
        "gda/config/identity_v1.yaml",
        "gda/losses/new.py",
        "hydra_plugins/gda_launcher/local.py",
    ]


def test_a_users_package_and_what_it_imports(project: Path) -> None:
    files = code_files(["my_package_a.terms.MyTerm", "torch.nn.Linear", "json.loads", "gda.app.run"])
    assert own(files) == [
        "my_helpers_a.py",
        "my_package_a/__init__.py",
        "my_package_a/inner/kernel.py",
        "my_package_a/terms.py",
    ]
    assert "my_package_a" not in sys.modules
    assert own(changed_files(files)) == []

    write(project / "my_package_a" / "inner" / "kernel.py", "K = 2\n")
    write(project / "my_package_a" / "inner" / "more.py", "")
    (project / "my_helpers_a.py").unlink()
    write(project / "unrelated_a.py", "changed = True\n")
    assert own(changed_files(files)) == [
        "my_helpers_a.py",
        "my_package_a/inner/kernel.py",
        "my_package_a/inner/more.py",
    ]


def test_a_package_that_has_gone(project: Path) -> None:
    files = code_files(["my_helpers_a.MyTerm"])
    assert own(files) == ["my_helpers_a.py"]
    shutil.rmtree(project)
    importlib.invalidate_caches()
    assert own(changed_files(files)) == ["my_helpers_a.py"]


def test_a_package_that_was_moved_whole_has_not_changed(project: Path, monkeypatch) -> None:
    files = code_files(["my_package_a.terms.MyTerm"])
    moved = project.rename(project.with_name("elsewhere"))
    monkeypatch.syspath_prepend(str(moved))
    assert own(changed_files(files)) == []


def test_folders_without_init_files(project: Path) -> None:
    """Found on the way to the target, although the folders above it hold no source."""
    write(project / "outer_a" / "lib" / "terms" / "mine.py", "X = 1\n")
    write(project / "outer_a" / "data" / "not_code" / "odd.py", "")
    files = code_files(["outer_a.lib.terms.mine.MyTerm"])
    assert own(files) == ["outer_a/lib/terms/mine.py"]
    write(project / "outer_a" / "lib" / "terms" / "mine.py", "X = 2\n")
    assert own(changed_files(files)) == ["outer_a/lib/terms/mine.py"]


def test_installed_packages_are_named_by_their_version_instead(tmp_path: Path, monkeypatch) -> None:
    installed = tmp_path / "lib" / "python3" / "site-packages"
    write(installed / "some_package_a" / "__init__.py", "")
    write(installed / "some_module_a.py", "")
    monkeypatch.syspath_prepend(str(installed))
    assert own(code_files(["some_package_a.Term", "some_module_a.Term", "numpy.array", "re.compile"])) == []


def test_targets_that_lead_nowhere(project: Path) -> None:
    write(project / "broken_a.py", "import (\nfrom x import\nimport my_helpers_a, , no_such_module_a\n")
    nowhere = ["", ".", "..a.b", "no_such_a.Term", "__main__.Term", "my_package_a", "my_helpers_a.x.y.z"]
    assert own(code_files(nowhere)) == own(code_files(["my_package_a.terms.MyTerm"]))
    assert own(code_files(["broken_a.Term"])) == ["broken_a.py", "my_helpers_a.py"]
