"""Pickles of arrays and containers: read in every protocol, refused by name where they would run code."""

import os
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gda.data.few_shot import safe_pickle
from gda.data.few_shot.pickled_array import PickledArray, Refused
from gda.data.few_shot.safe_pickle import load_pickle
from gda.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_is_read(protocol: int, tmp_path: Path) -> None:
    content = {
        "data": PIXELS,
        "fortran": np.asfortranarray(PIXELS),
        "big": np.arange(3, dtype=">i4"),
        "empty": np.zeros((0, 3), np.float32),
        "labels": [3, 300, 70_000, -1, 2**40],
        "scalars": [np.int64(7), np.float32(0.5)],
        "names": OrderedDict(n01=0, n02=1),
        "plain": (None, True, False, 1.5, (), [], {}, ("a",), b"\x00\xff"),
    }
    found = load_pickle(written(tmp_path / "a.pkl", pickle.dumps(content, protocol=protocol)))
    for name in ("data", "fortran", "big", "empty"):
        array = found.pop(name).numpy()
        expected: Any = content.pop(name)
        assert array.dtype.kind == expected.dtype.kind
        assert np.array_equal(array, expected)
    assert found == content


def test_what_python_2_wrote_is_read(tmp_path: Path) -> None:
    def text(value: bytes) -> bytes:  # SHORT_BINSTRING, of which Python 3 writes none
        return b"U" + bytes([len(value)]) + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
        b"(K\x01K\x02K\x02\x86cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89" + text(b"\x00\x7f\x80\xff") + b"tb"
    )
    data = b"\x80\x02}(" + text(b"data") + array + text(b"labels") + b"]K\x05au."
    expected = pickle.loads(data, encoding="latin1")
    found = load_pickle(written(tmp_path / "a.pkl", data))
    assert found["labels"] == expected["labels"] == [5]
    assert np.array_equal(found["data"].numpy(), expected["data"])
    assert found["data"].numpy().tolist() == [[0, 127], [128, 255]]


class Hostile:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.mkdir, ("ran",), f"{os.name}.mkdir"),
        (eval, ("open('ran', 'w')",), "eval"),
        (getattr, (1, "real"), "getattr"),
        (np.load, ("ran",), "load"),
        (pickle.loads, (b"",), "loads"),
        (np.random.RandomState, (), "RandomState"),
    ],
)
def test_hostile_pickles_are_refused_by_name_and_never_run(
    function: Any,
    arguments: tuple[Any, ...],
    name: str,
    protocol: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"labels": [Hostile(function, *arguments)]}, protocol=protocol)
    for labels_only in (False, True):
        with pytest.raises(UserError) as error:
            load_pickle(written(tmp_path / "a.pkl", data), labels_only=labels_only)
        assert name in str(error.value)
        assert "could run code" in str(error.value)
        assert str(tmp_path / "a.pkl") in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_objects_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.pkl", pickle.dumps(Path("a")))
    with pytest.raises(UserError, match=r"pathlib.*could run code"):
        load_pickle(path)
    path = written(tmp_path / "a.pkl", b"(S'touch ran'\nios\nsystem\n.")
    with pytest.raises(UserError, match=r"os\.system"):
        load_pickle(path)
    path = written(tmp_path / "a.pkl", b"(inumpy\ndtype\n.")
    with pytest.raises(UserError, match="makes an object"):
        load_pickle(path)


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.pkl", pickle.dumps(np.array([{}, []], dtype=object)))
    with pytest.raises(UserError, match="'O8', not of plain numbers"):
        load_pickle(path)


DEEP = 300_000  # python's own reader overflows its stack when it hashes a tuple nested so deeply

MALFORMED = {
    "nested key": b"\x80\x02}N" + b"\x85" * DEEP + b"Ns.",
    "nothing": b"",
    "no pickle": b"miniImageNet",
    "no end": b"\x80\x02]",
    "no item": b"\x80\x02.",
    "no mark": b"\x80\x02u.",
    "tuple of nothing": b"\x80\x02\x87.",
    "unknown memo": b"\x80\x02h\x07.",
    "append to a number": b"\x80\x02K\x01K\x02a.",
    "entry of a number": b"\x80\x02K\x01K\x02K\x03s.",
    "call of a number": b"\x80\x02K\x01)R.",
    "call of a type": b"\x80\x02cnumpy\nndarray\n)R.",
    "state of a list": b"\x80\x02]}b.",
    "state of a name": b"\x80\x02cnumpy\ndtype\n}b.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent id": b"\x80\x02K\x01Q.",
    "more bytes than there are": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x00.",
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("labels_only", [False, True])
def test_malformed_pickles_are_refused(name: str, labels_only: bool, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not read"):
        load_pickle(written(tmp_path / "a.pkl", MALFORMED[name]), labels_only=labels_only)


def test_a_pickle_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = pickle.dumps({"data": PIXELS[0], "labels": [1, 2, 3]}, protocol=2)
    for length in range(len(whole)):
        with pytest.raises(UserError, match="is not read"):
            load_pickle(written(tmp_path / "a.pkl", whole[:length]))


def test_an_array_whose_bytes_do_not_fit_its_shape_is_refused(tmp_path: Path) -> None:
    data = pickle.dumps(np.zeros((2, 3), np.uint8), protocol=3)
    assert data.count(b"K\x02K\x03") == 1
    for shape in (b"K\x02K\x04", b"J\xff\xff\xff\xffJ\xfa\xff\xff\xff", b"G" + bytes(8) + b"K\x03"):
        path = written(tmp_path / "a.pkl", data.replace(b"K\x02K\x03", shape))
        with pytest.raises(UserError, match="does not fit its bytes"):
            load_pickle(path)


def test_a_small_file_can_not_grow_in_memory(tmp_path: Path) -> None:
    text = b"X\x10\x27\x00\x00" + b"a" * 10_000 + b"q\x00"
    encode = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    path = written(tmp_path / "a.pkl", b"\x80\x02](" + text + encode * 100 + b"e.")
    with pytest.raises(UserError, match="far more than its size"):
        load_pickle(path)


@pytest.mark.parametrize("protocol", range(1, pickle.HIGHEST_PROTOCOL + 1))
def test_labels_can_be_read_without_the_images(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe_pickle, "SKIPPED_FROM", 200)
    content = {"data": PIXELS, "labels": [1, 2, 3]}
    path = written(tmp_path / "a.pkl", pickle.dumps(content, protocol=protocol))
    found = load_pickle(path, labels_only=True)
    assert found["labels"] == [1, 2, 3]
    assert isinstance(found["data"], PickledArray)
    assert (found["data"].shape, found["data"].dtype) == (PIXELS.shape, "<u1")
    # Before protocol 3 bytes are text, and in protocol 5 they are made writable: those are read after all.
    if "SHORT_BINBYTES" in {opcode.name for opcode, _, _ in pickletools.genops(path.read_bytes())}:
        with pytest.raises(Refused):
            found["data"].numpy()
    else:
        assert np.array_equal(found["data"].numpy(), PIXELS)


def test_a_missing_file_is_an_error_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't read"):
        load_pickle(tmp_path / "none.pkl")
