"""`python -m gda.models.export` and `python -m gda.models.import`, as they are typed."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DIGITS = ("--dataset", "digits", "--recipe", "digits")


def command(name: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", f"gda.models.{name}", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)


def test_the_export_prints_what_it_wrote_and_last_the_folder(copied: Path) -> None:
    done = command("export", copied, "--formats", "safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    first, last = done.stdout.splitlines()
    assert first.startswith("model.safetensors")
    assert last == str(copied / "export")
    assert (copied / "export" / "model.safetensors").is_file()


def test_the_export_ends_in_a_sentence_where_there_is_no_run(tmp_path: Path) -> None:
    done = command("export", tmp_path / "nothing")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{tmp_path / 'nothing'} is no run folder.")
    assert len(done.stderr.splitlines()) == 1


def test_the_import_prints_the_accuracy_and_last_the_folder(foreign: Path, tmp_path: Path) -> None:
    done = command("import", foreign, "--model", "resnet8", *DIGITS, "--to", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    first, last = done.stdout.splitlines()
    assert first.startswith("top-1 ")
    assert last == str(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "model.json",
        "model.safetensors",
    }


def test_the_import_ends_in_a_sentence_where_there_is_no_file(tmp_path: Path) -> None:
    done = command(
        "import", tmp_path / "nothing.pth", "--model", "resnet8", *DIGITS, "--to", tmp_path / "out"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"There is no checkpoint file {tmp_path / 'nothing.pth'}.\n"
    assert not (tmp_path / "out").exists()
