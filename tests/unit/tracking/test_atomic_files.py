import json
import stat
from pathlib import Path

import numpy as np
import pytest

from gda.errors import UserError
from gda.tracking.atomic import append_line, read_json_lines, write_json_atomic, write_text_atomic

# A limit on the file size stands in for a full disk: the write that crosses it fails.
FULL_DISK = """
import resource, signal, sys
from gda.tracking import atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
path = sys.argv[1]
for write in (
    lambda: atomic.write_text_atomic(path, "x" * 100_000),
    lambda: atomic.append_line(path, {"x": "y" * 100_000}),
):
    try:
        write()
    except OSError as error:
        print(error.errno)
"""


def test_a_new_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")
    write_text_atomic(path, "nü")
    assert path.read_text(encoding="utf-8") == "nü"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    write_text_atomic(tmp_path / "atomic", "")
    assert stat.S_IMODE((tmp_path / "atomic").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_json_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    inf = float("inf")
    write_json_atomic(path, {"a": [float("nan"), inf, -inf, 1.5], "b": np.float32(2), "c": (tmp_path, None)})
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content == {"a": ["nan", "inf", "-inf", 1.5], "b": 2.0, "c": [str(tmp_path), None]}
    with pytest.raises(TypeError):
        write_json_atomic(path, {"a": object()})
    assert json.loads(path.read_text()) == content


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, python) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"epoch": 0})
    before = path.read_bytes()
    process = python(FULL_DISK, path)
    output, errors = process.communicate(timeout=60)
    assert output.split() == ["27", "27"], errors
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_lines_are_appended_and_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert read_json_lines(path) == []
    for epoch in range(3):
        append_line(path, {"epoch": epoch, "loss": float("nan")})
    assert read_json_lines(path) == [{"epoch": epoch, "loss": "nan"} for epoch in range(3)]


@pytest.mark.parametrize("torn", [b'{"epoch": 1, "lo', b'{"epoch": 1}', b"\0\0\0", b"x" * 200_000])
def test_a_torn_last_line_counts_as_not_written(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"epoch": 0}\n' + torn)
    assert read_json_lines(path) == [{"epoch": 0}]
    append_line(path, {"epoch": 1})
    assert path.read_bytes() == b'{"epoch": 0}\n{"epoch": 1}\n'


def test_a_torn_first_line_leaves_no_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"epo')
    assert read_json_lines(path) == []
    append_line(path, {"epoch": 0})
    assert read_json_lines(path) == [{"epoch": 0}]


def test_damage_in_the_middle_is_reported_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"epoch": 0}\nrubbish\n{"epoch": 2}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2"):
        read_json_lines(path)
