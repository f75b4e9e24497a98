"""Damaged and forged files: the loader loads finite weights or says in words why not, and nothing else."""

import argparse
import io
import math
import os
import pickletools
import struct
import sys
import zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from gda.errors import UserError
from gda.models import load_checkpoint

CONTAINERS = ("zip", "legacy", "safetensors")

fuzzed = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


WATCHED = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "os.remove",
)


class Watch:
    """Records what a file makes the interpreter do, while a file is being loaded."""

    def __init__(self) -> None:
        self.armed = False
        self.events: list[str] = []
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.armed and event in WATCHED:
            self.events.append(event)


watch = Watch()


def test_the_watch_hears_code_that_runs() -> None:
    watch.armed = True
    os.system("true")
    watch.armed = False
    assert watch.events == ["os.system"]
    watch.events.clear()


@cache
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@cache
def file_of(container: str) -> bytes:
    torch.manual_seed(1)
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    if container == "safetensors":
        return safetensors.torch.save(other.state_dict(), {"format": "pt", "epoch": "3"})
    content = {
        "epoch": 3,
        "arch": "resnet8",
        "state_dict": other.state_dict(),
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2, 3).t()}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(model="resnet8", shape=(1, 2), device=torch.device("cpu")),
        "version": 2,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=container == "zip")
    return buffer.getvalue()


def load(data: bytes, folder: Path) -> bool:
    """Loads a file and checks what the loader promises; says whether it was loaded."""
    path = folder / "fuzzed"
    path.write_bytes(data)
    model = network()
    before = OrderedDict((key, value.clone()) for key, value in model.state_dict().items())
    try:
        watch.armed = True
        loaded = load_checkpoint(model, path)
    except UserError as error:
        assert_same(model.state_dict(), before)
        message = str(error)
        assert message.isprintable()
        assert len(message) < 2000
        return False
    finally:
        watch.armed = False
        assert not watch.events
    assert all(math.isfinite(figure) for figure in loaded.metrics.values())
    for key, value in model.state_dict().items():
        assert value.shape == before[key].shape
        assert torch.isfinite(value).all()
    model.load_state_dict(before)
    return True


def assert_same(state: dict[str, Any], expected: dict[str, Any]) -> None:
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in state.items())


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_files_load_before_they_are_damaged(container: str, tmp_path: Path) -> None:
    assert load(file_of(container), tmp_path)


# -- bytes -------------------------------------------------------------------------------------------


@st.composite
def damaged(draw: st.DrawFn, container: str) -> bytes:
    """Flips, cuts, fills with zeros, repeats and moves bytes."""
    data = bytearray(file_of(container))
    for _ in range(draw(st.integers(1, 4))):
        # the beginning and the end hold what the rest is understood by
        near = st.one_of(
            st.integers(0, 400), st.integers(0, len(data)), st.integers(len(data) - 400, len(data))
        )
        start = max(0, min(len(data), draw(near)))
        end = min(len(data), start + draw(st.sampled_from([1, 2, 8, 64, 1000])))
        match draw(st.sampled_from(["flip", "cut", "zero", "repeat", "splice", "random", "remove"])):
            case "flip" if start < len(data):
                data[start] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[start:]
            case "zero":
                data[start:end] = bytes(end - start)
            case "repeat":
                data[start:start] = data[start:end]
            case "splice":
                data[start:end] = data[draw(st.integers(0, len(data))) :][: end - start]
            case "random":
                data[start:end] = draw(st.binary(min_size=end - start, max_size=end - start))
            case "remove":
                del data[start:end]
    return bytes(data)


@pytest.mark.parametrize("container", CONTAINERS)
def test_damaged_bytes(container: str, tmp_path: Path) -> None:
    @fuzzed
    @given(damaged(container))
    def attempt(data: bytes) -> None:
        load(data, tmp_path)

    attempt()


# -- pickles -----------------------------------------------------------------------------------------

NAMES = (
    *(
        "posix system",
        "builtins eval",
        "__builtin__ exec",
        "os system",
        "subprocess Popen",
        "copyreg _reconstructor",
    ),
    *("torch Tensor", "torch FloatTensor", "torch.nn.parameter Parameter", "torch Size", "torch device"),
    *("torch FloatStorage", "torch LongStorage", "torch BoolStorage", "torch.storage UntypedStorage"),
    *(f"torch._utils {name}" for name in torch._utils.__dict__ if name.startswith("_rebuild")),
    *(
        "torch._tensor _rebuild_from_type_v2",
        "torch.serialization _get_layout",
        "torch float64",
        "torch int8",
    ),
    *(
        "collections OrderedDict",
        "collections Counter",
        "builtins bytearray",
        "builtins set",
        "_codecs encode",
    ),
    *("argparse Namespace", "numpy dtype", "numpy.core.multiarray scalar", "pathlib PosixPath"),
)
NUMBERS = (0, 1, 2, 3, 4, 8, 27, 108, 255, 2**16, 2**31 - 1, -1, -(2**31), 2**33, 2**40, 2**62, 2**63, 2**70)
TEXTS = (
    "storage",
    "module",
    "cpu",
    "cuda:0",
    "meta",
    "0",
    "1",
    "99",
    "../../0",
    "",
    "\ud800",
    "\x1b[31m\n",
    "k" * 300,
)


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    length = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def name(value: str) -> bytes:
    return b"c" + value.replace(" ", "\n").encode() + b"\n"


def steps_of(data: bytes) -> list[bytes]:
    """Cuts a pickle into its instructions."""
    starts = [position for _, _, position in pickletools.genops(data)]
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


WHOLE_STEPS = (
    *(
        b"N",
        b"\x88",
        b"\x89",
        b")",
        b"]",
        b"}",
        b"(",
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"s",
        b"u",
        b"a",
        b"e",
    ),
    *(b"R", b"\x81", b"b", b"Q", b"0", b"2", b"\x8f", b"\x93", b".", b"G" + struct.pack(">d", math.inf)),
    *(b"h" + bytes([index]) for index in (0, 1, 5, 9)),
    b"r\xff\xff\xff\xff",
    b"X\xff\xff\xff\xff",
)


def forged(steps: list[bytes]) -> st.SearchStrategy[bytes]:
    """Replaces, repeats, removes, moves and inserts instructions, numbers and names."""
    new = st.one_of(
        st.sampled_from(NUMBERS).map(number),
        st.sampled_from(NAMES).map(name),
        st.sampled_from(TEXTS).map(text),
        st.sampled_from(WHOLE_STEPS),
        st.sampled_from(steps),
    )
    places = st.integers(0, len(steps) - 1)
    numbers = [index for index, step in enumerate(steps) if step[:1] in (b"K", b"M", b"J")]
    names = [index for index, step in enumerate(steps) if step[:1] == b"c"]
    edits = [st.tuples(st.sampled_from(["replace", "insert", "remove", "swap"]), places, new)]
    if numbers and names:
        edits.append(
            st.tuples(st.just("replace"), st.sampled_from(numbers), st.sampled_from(NUMBERS).map(number))
        )
        edits.append(st.tuples(st.just("replace"), st.sampled_from(names), st.sampled_from(NAMES).map(name)))

    def apply(edits: list[tuple[str, int, bytes]]) -> bytes:
        changed = list(steps)
        for kind, place, step in edits:
            match kind:
                case "replace":
                    changed[place] = step
                case "insert":
                    changed[place] = changed[place] + step
                case "remove":
                    changed[place] = b""
                case "swap":
                    changed[place], changed[place - 1] = changed[place - 1], changed[place]
        return b"".join(changed)

    return st.lists(st.one_of(edits), min_size=1, max_size=3).map(apply)


def zip_with(pickled: bytes) -> bytes:
    """Returns the zip file with another pickle in it; all checksums are right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(file_of("zip"))) as old, zipfile.ZipFile(buffer, "w") as new:
        for record in old.infolist():
            content = pickled if record.filename.endswith("data.pkl") else old.read(record)
            new.writestr(record.filename, content)
    return buffer.getvalue()


def pickle_in_zip() -> bytes:
    with zipfile.ZipFile(io.BytesIO(file_of("zip"))) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def pickles_in_legacy() -> tuple[list[bytes], bytes]:
    """Returns the five pickles that a legacy file begins with, and the numbers after them."""
    stream = io.BytesIO(file_of("legacy"))
    pickles = []
    for _ in range(5):
        start = stream.tell()
        list(pickletools.genops(stream))
        pickles.append(file_of("legacy")[start : stream.tell()])
    return pickles, stream.read()


def test_forged_pickles_in_zip_files(tmp_path: Path) -> None:
    steps = steps_of(pickle_in_zip())
    assert load(zip_with(b"".join(steps)), tmp_path)

    @fuzzed
    @given(forged(steps))
    def attempt(pickled: bytes) -> None:
        load(zip_with(pickled), tmp_path)

    attempt()


@pytest.mark.parametrize("which", [3, 4])
def test_forged_pickles_in_legacy_files(which: int, tmp_path: Path) -> None:
    pickles, numbers = pickles_in_legacy()

    @fuzzed
    @given(forged(steps_of(pickles[which])))
    def attempt(pickled: bytes) -> None:
        load(b"".join([*pickles[:which], pickled, *pickles[which + 1 :], numbers]), tmp_path)

    attempt()
