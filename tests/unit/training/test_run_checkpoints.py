"""Checkpoints survive truncation, flipped bytes and a full disk."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gda.training.checkpoint import BEST, LAST, PREVIOUS, CheckpointError, load, load_last, save, save_last

ROOT = Path(__file__).resolve().parents[3]


def state(epoch: int) -> dict[str, object]:
    return {
        "epoch": epoch,
        "model": {"weight": torch.full((3, 5), float(epoch)), "count": torch.tensor(epoch)},
        "history": [{"epoch": k, "loss": 0.1 * k} for k in range(epoch + 1)],
        "best": None,
    }


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    save(tmp_path / BEST, state(3))
    found = load(tmp_path / BEST)
    assert found["history"] == state(3)["history"]
    assert torch.equal(found["model"]["weight"], torch.full((3, 5), 3.0))
    assert [path.name for path in tmp_path.iterdir()] == [BEST]


def test_the_one_before_is_kept(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        save_last(tmp_path, state(epoch))
    assert load(tmp_path / LAST)["epoch"] == 3
    assert load(tmp_path / PREVIOUS)["epoch"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]


def test_nothing_saved_means_a_beginning(tmp_path: Path) -> None:
    assert load_last(tmp_path) == (None, [])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_falls_back_to_the_one_before(share: float, tmp_path: Path) -> None:
    for epoch in (1, 2):
        save_last(tmp_path, state(epoch))
    data = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(data[: int(share * len(data))])
    found, notes = load_last(tmp_path)
    assert found is not None
    assert found["epoch"] == 1
    (note,) = notes
    assert "last.pt" in note
    assert "falling back to what was saved before it" in note
    assert (tmp_path / "last.pt.damaged").exists()
    assert load_last(tmp_path)[0]["epoch"] == 1  # type: ignore[index]
    save_last(tmp_path, state(2))
    found, notes = load_last(tmp_path)
    assert found is not None
    assert (found["epoch"], notes) == (2, [])


def test_no_flipped_byte_is_taken_for_a_weight(tmp_path: Path) -> None:
    """Every byte of the file once: either it is found out, or what is loaded is what was saved."""
    save(tmp_path / LAST, state(2))
    data = (tmp_path / LAST).read_bytes()
    found_out = 0
    for position in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[position] ^= 0x55
        (tmp_path / LAST).write_bytes(damaged)
        try:
            found = load(tmp_path / LAST)
        except CheckpointError:
            found_out += 1
            continue
        assert found["history"] == state(2)["history"]
        assert torch.equal(found["model"]["weight"], torch.full((3, 5), 2.0))
    assert found_out > 100


def test_with_both_damaged_the_run_starts_again_and_says_so(tmp_path: Path) -> None:
    for epoch in (1, 2):
        save_last(tmp_path, state(epoch))
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(b"not a checkpoint")
    found, notes = load_last(tmp_path)
    assert found is None
    assert len(notes) == 3
    assert "starts again from its first epoch" in notes[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt.damaged", "previous.pt.damaged"]


def test_a_kill_between_the_two_renames_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    save_last(tmp_path, state(1))
    (tmp_path / f".{PREVIOUS}.link").write_bytes(b"left by a kill")
    save_last(tmp_path, state(2))
    assert load(tmp_path / LAST)["epoch"] == 2
    assert load(tmp_path / PREVIOUS)["epoch"] == 1


def test_a_file_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, (f"touch {proof}",)

    torch.save({"model": Hostile()}, tmp_path / LAST)
    found, notes = load_last(tmp_path)
    assert found is None
    assert notes
    assert not proof.exists()


def test_something_else_than_a_checkpoint(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / LAST)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load(tmp_path / LAST)


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from gda.training.checkpoint import CheckpointError, load, save_last
folder = Path(sys.argv[1])
save_last(folder, {"epoch": 1, "weight": torch.zeros(100)})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_last(folder, {"epoch": 2, "weight": torch.zeros(100_000)})
except CheckpointError as error:
    print(error)
else:
    print("it was written")
print(load(folder / "last.pt")["epoch"], sorted(path.name for path in folder.iterdir()))
"""


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    message, rest = done.stdout.splitlines()
    assert "could not be written" in message
    assert "make room on that disk" in message
    assert "the same command" in message
    assert rest == "1 ['last.pt', 'previous.pt']"
