"""What `load_exported` makes of a folder that is not what it should be."""

import shutil
from pathlib import Path

import pytest

from gda.errors import UserError
from gda.models import load_exported


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "export"))


def test_weights_with_one_changed_bit_are_refused(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"is not the file that model.json beside it describes"):
        load_exported(folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 1}', "is damaged"),
        ('{"format": 1, "files": {}, "architecture": {"name": "x", "options": []}}', "is damaged"),
        ('{"format": 2}', "has format 2; this version of gda reads format 1"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(folder: Path, content: str, says: str) -> None:
    (folder / "model.json").write_text(content)
    with pytest.raises(UserError, match=says):
        load_exported(folder)


def test_a_run_folder_leads_to_its_export(exported: Path, copied: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"python -m gda\.models\.export .*seed0"):
        load_exported(copied)
    shutil.copytree(exported, copied / "export")
    with pytest.raises(UserError, match=r"Did you mean .*export\?"):
        load_exported(copied)
    with pytest.raises(UserError, match="Name a folder that"):
        load_exported(tmp_path)
