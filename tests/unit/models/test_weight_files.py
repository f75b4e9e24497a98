"""Files that would run code, exhaust memory or time, or are no weights: refused in words, nothing done."""

import argparse
import gzip
import io
import itertools
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from gda.errors import UserError
from gda.models.weights.weight_files import read_weight_file


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.proof}",)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_weight_file(path)
    return str(error.value)


# -- code --------------------------------------------------------------------------------------------

PLACES: dict[str, Callable[[Hostile], Any]] = {
    "the whole file": lambda hostile: hostile,
    "beside the weights": lambda hostile: {"model": {"a": torch.ones(1)}, "extra": hostile},
    "in the weights": lambda hostile: {"model": OrderedDict(a=torch.ones(1), b=hostile)},
    "in the options": lambda hostile: {
        "state_dict": {"a": torch.ones(1)},
        "args": argparse.Namespace(x=[hostile]),
    },
    "in an attribute": lambda hostile: {"model": with_attribute(hostile)},
}


def with_attribute(value: Any) -> OrderedDict[str, Any]:
    state = OrderedDict(a=torch.ones(1))
    state._metadata = {"": value}  # type: ignore[attr-defined]
    return state


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", ["zip", "legacy", 0, 2, 4, 5])
def test_a_pickle_that_would_run_code_is_refused_by_name(place: str, form: str | int, tmp_path: Path) -> None:
    proof, path = tmp_path / "ran", tmp_path / "hostile.pt"
    content = PLACES[place](Hostile(proof))
    if isinstance(form, int):
        path.write_bytes(pickle.dumps(content, protocol=form))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    message = refusal(path)
    assert "can't be read safely" in message
    # Plain pickles store tensors with names of torch's own, which may come first.
    assert "which could run code" in message or isinstance(form, int)
    assert "posix.system" in message or place != "the whole file" or form == 0
    assert not proof.exists()
    pickle.loads(path.read_bytes()) if isinstance(form, int) else torch.load(path, weights_only=False)
    assert proof.exists(), "the payload itself must work, else this test proves nothing"


def test_a_whole_model_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    message = refusal(tmp_path / "model.pt")
    assert (
        "torch.nn.modules.linear.Linear, which could run code; save the model's state_dict() instead"
        in message
    )


def test_what_may_be_named_becomes_plain_data(tmp_path: Path) -> None:
    import numpy as np

    content = {
        "model": {"a": torch.ones(1)},
        "float": np.float64(1.5),
        "half": np.float16(0.5),
        "big": np.array(3, dtype=">i4")[()],
        "flag": np.bool_(True),
        "path": Path("/data/x"),
        "options": argparse.Namespace(a=1),
        "set": {1, 2},
        "device": torch.device("cuda", 0),
        "dtype": torch.float16,
        "bytes": b"\xff",
        "words": torch.tensor([1, 2], dtype=torch.uint16),
    }
    torch.save(content, tmp_path / "plain.pt")
    read = read_weight_file(tmp_path / "plain.pt").content
    assert {key: read[key] for key in ("float", "half", "big", "flag", "path", "options", "set")} == {
        "float": 1.5,
        "half": 0.5,
        "big": 3,
        "flag": True,
        "path": "//data/x",
        "options": argparse.Namespace(a=1),
        "set": {1, 2},
    }
    assert type(read["float"]) is float
    assert read["device"] == torch.device("cuda", 0)
    assert read["dtype"] is torch.float16
    assert read["words"].tolist() == [1, 2]


# -- claims ------------------------------------------------------------------------------------------


def unicode(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def integer(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def tensor(
    numel: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int = 0,
    key: str = "0",
    kind: str = "Float",
) -> bytes:
    """Pickles a tensor that claims what it is told to."""
    storage = f"ctorch\n{kind}Storage\n".encode() + unicode(key) + unicode("cpu") + integer(numel)
    shape = b"(" + b"".join(map(integer, size)) + b"t(" + b"".join(map(integer, stride)) + b"t"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return rebuild + b"(" + unicode("storage") + storage + b"tQ" + integer(offset) + shape + hooks + b"tR"


def write(
    path: Path, *entries: bytes, numbers: bytes = bytes(16), compression: int = zipfile.ZIP_STORED
) -> Path:
    """Writes a zip file as torch does, of the entries of a dictionary and the numbers of one storage."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}(" + b"".join(entries) + b"u.")
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", numbers)
        archive.writestr("archive/version", "3\n")
    return path


def test_the_forger_of_these_tests_can_write_a_true_file(tmp_path: Path) -> None:
    numbers = torch.arange(4.0).numpy().tobytes()
    path = write(tmp_path / "true.pt", unicode("a"), tensor(4, (2, 2), (1, 2)), numbers=numbers)
    assert read_weight_file(path).content["a"].tolist() == [[0, 2], [1, 3]]
    assert torch.load(path, weights_only=True)["a"].tolist() == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([tensor(2**40, (2**39,), (1,))], "lacks numbers"),
        ([tensor(8, (8,), (1,))], "lacks numbers"),
        ([tensor(4, (5,), (1,))], "beyond its numbers"),
        ([tensor(4, (4,), (1,), offset=1)], "beyond its numbers"),
        ([tensor(4, (2, 2), (3, 1))], "beyond its numbers"),
        ([tensor(4, (2**30, 2**30), (0, 0))], "beyond its numbers"),
        ([tensor(4, (2**50,), (0,))], "impossible shape"),
        ([tensor(4, (2, 0, 2**62), (1, 1, 1))], "impossible shape"),
        ([tensor(4, (2,), (-1,), offset=3)], "impossible shape"),
        ([tensor(4, (-2,), (1,))], "impossible shape"),
        ([tensor(4, (2, 2), (1,))], "impossible shape"),
        ([tensor(4, (1,) * 65, (1,) * 65)], "impossible shape"),
        ([tensor(4, (4,), (1,), key="1")], "lacks numbers"),
        ([tensor(4, (4,), (1,), key="../0")], "lacks numbers"),
        ([tensor(-4, (4,), (1,))], "damaged"),
        ([tensor(4, (4,), (1,), kind="ComplexFloat")], "ComplexFloatStorage"),
        ([tensor(4, (4,), (1,), kind="QInt8")], "QInt8Storage"),
        # torch believes the first of two descriptions of one storage, and then the second's lengths
        ([tensor(4, (4,), (1,)), unicode("b"), tensor(16, (16,), (1,), kind="Byte")], "says two things"),
    ],
)
def test_a_tensor_that_claims_what_is_not_there(entries: list[bytes], expected: str, tmp_path: Path) -> None:
    path = write(tmp_path / "claims.pt", unicode("a"), *entries)
    tracemalloc.start()
    try:
        assert expected in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


lengths = st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 6)), max_size=3)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(0, 12), st.integers(-1, 12), lengths)
def test_a_tensor_is_read_just_when_it_lies_within_its_numbers(
    tmp_path: Path, numel: int, offset: int, shape: list[tuple[int, int]]
) -> None:
    size, stride = tuple(length for length, _ in shape), tuple(step for _, step in shape)
    numbers = torch.arange(float(numel))
    path = write(
        tmp_path / "tensor.pt",
        unicode("a"),
        tensor(numel, size, stride, offset),
        numbers=numbers.numpy().tobytes(),
    )
    if any(number < 0 for number in (offset, *size, *stride)):
        assert "impossible shape" in refusal(path)
        return
    places = [
        offset + sum(index * step for index, step in zip(indices, stride, strict=True))
        for indices in itertools.product(*map(range, size))
    ]
    if len(places) > numel or any(place >= numel for place in places) or offset > numel:
        assert "beyond its numbers" in refusal(path)
        return
    read = read_weight_file(path).content["a"]
    assert read.shape == size
    assert read.flatten().tolist() == [float(place) for place in places]


def test_weights_saved_on_a_gpu_are_read_without_one(tmp_path: Path) -> None:
    on_gpu = tensor(4, (4,), (1,)).replace(unicode("cpu"), unicode("cuda:7"))
    assert (
        read_weight_file(write(tmp_path / "gpu.pt", unicode("a"), on_gpu)).content["a"].device.type == "cpu"
    )


def test_an_expanded_tensor_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(1_000_000, 1_000_000)}, tmp_path / "expanded.pt")
    assert (tmp_path / "expanded.pt").stat().st_size < 5000
    assert "reaches beyond its numbers" in refusal(tmp_path / "expanded.pt")


def test_a_legacy_file_that_claims_more_numbers_than_it_has(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(200)}, tmp_path / "true.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "true.pt").read_bytes()
    claimed = data.replace(b"K\xc8", b"J\xff\xff\xff\x7f").replace(
        struct.pack("<q", 200), struct.pack("<q", 2**31 - 1)
    )
    (tmp_path / "claims.pt").write_bytes(claimed)
    assert "lacks numbers" in refusal(tmp_path / "claims.pt")


DEEP = 150_000


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (b")" + b"\x85" * DEEP + b"K\x01", "other than plain values"),  # hashing this key would crash Python
        (unicode("a") + b"cbuiltins\nset\n]" + b")" + b"\x85" * DEEP + b"a\x85R", "other than plain values"),
        (unicode("a") + b"cnumpy\ndtype\n)" + b"\x85" * DEEP + b"\x85R", "damaged"),
        (unicode("a") + b"ccollections\nOrderedDict\n)R(" + b")" + b"\x85" * DEEP + b"K\x01tb", "attributes"),
        (unicode("a") + b"N" * 2_000_000, "far more than"),
    ],
    ids=["deep key", "deep set", "deep dtype", "deep attributes", "many instructions"],
)
def test_structures_that_would_crash_or_hang(entry: bytes, expected: str, tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "bomb.pt", entry))
    assert expected in message


def test_calls_that_copy_without_end(tmp_path: Path) -> None:
    """A few bytes each, but each call would copy all entries again."""
    pairs = b"](" + b"](K\x01K\x02e" * 20_000 + b"eq\x00"
    copies = b"ccollections\nOrderedDict\nh\x00\x85R"
    many = b"".join(unicode(f"k{index}") + copies for index in range(1000))
    assert "far more than" in refusal(write(tmp_path / "bomb.pt", unicode("a") + pairs, many))


def test_deep_plain_data_is_only_carried(tmp_path: Path) -> None:
    deep = b")" + b"\x85" * DEEP
    path = write(tmp_path / "deep.pt", unicode("a"), tensor(4, (4,), (1,)), unicode("x"), deep)
    assert set(read_weight_file(path).content) == {"a", "x"}


def test_attributes_that_would_hide_methods(tmp_path: Path) -> None:
    hiding = unicode("model") + b"ccollections\nOrderedDict\n)R}" + unicode("items") + b"K\x03sb"
    assert "gives attributes" in refusal(write(tmp_path / "hiding.pt", hiding))


def test_safetensors_of_countless_tensors(tmp_path: Path) -> None:
    nothing = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = "{" + ",".join(f'"{index}":{nothing}' for index in range(100_001)) + "}"
    (tmp_path / "many.safetensors").write_bytes(struct.pack("<q", len(header)) + header.encode())
    assert "far more than a model's weights" in refusal(tmp_path / "many.safetensors")


@pytest.mark.parametrize("kind", ["F8_E4M3", "C64"])
def test_safetensors_of_odd_numbers(kind: str, tmp_path: Path) -> None:
    size = {"F8_E4M3": 1, "C64": 8}[kind]
    header = f'{{"a":{{"dtype":"{kind}","shape":[1],"data_offsets":[0,{size}]}}}}'
    (tmp_path / "odd.safetensors").write_bytes(struct.pack("<q", len(header)) + header.encode() + bytes(size))
    assert "no plain number" in refusal(tmp_path / "odd.safetensors")


# -- archives ----------------------------------------------------------------------------------------


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "bomb.pt",
        unicode("a"),
        tensor(2**24, (2**24,), (1,)),
        numbers=bytes(2**26),
        compression=zipfile.ZIP_DEFLATED,
    )
    assert path.stat().st_size < 2**20
    assert "no archive as torch.save writes it" in refusal(path)


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "script.pt", unicode("a"), tensor(4, (4,), (1,)))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", b"\x80\x02).")
    assert "it is a TorchScript program" in refusal(path)


def test_two_records_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "twice.pt", unicode("a"), tensor(4, (4,), (1,)))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    assert "no archive as torch.save writes it" in refusal(path)


def test_a_flipped_bit_is_found_by_its_checksum(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "good.pt")
    data = bytearray((tmp_path / "good.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.pt").write_bytes(data)
    assert "data/0 fails its checksum" in refusal(tmp_path / "flipped.pt")


# -- what is no file of weights ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "damaged, or no file of weights"),
        (b"PK\x03\x04", "damaged, or no file of weights"),
        (b"\n <!DOCTYPE html><html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "'git lfs pull'"),
        (gzip.compress(b"weights", mtime=0), "it is compressed"),
        (pickle.dumps({"a": 1}), "a pickle that torch.save has not written"),
        (struct.pack("<q", 2**40) + b"{" + bytes(100), "damaged, or no file of weights"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"epoch,loss\n", "damaged, or no file of weights"),
    ],
)
def test_files_that_are_often_mistaken_for_weights(data: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(data)
    assert expected in refusal(tmp_path / "weights.pth")


def test_a_zip_of_weights_is_to_be_unpacked(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(1)}, buffer)
    with zipfile.ZipFile(tmp_path / "weights.zip", "w") as archive:
        archive.writestr("folder/weights.pth", buffer.getvalue())
    assert "it is a zip archive; unpack it" in refusal(tmp_path / "weights.zip")


@pytest.mark.parametrize("content", [[torch.ones(1)], torch.ones(1), 3, "weights"])
def test_other_things_that_torch_saves(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    assert f"it holds a {type(content).__name__}, not weights" in refusal(tmp_path / "other.pt")
