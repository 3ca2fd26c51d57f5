"""Files that are whole or absent: through errors, kills, a full disk and two writers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from semmae import artifact, checkpoint

KILLED = """
import os, signal, sys
from pathlib import Path
from semmae import artifact
with artifact.replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_what_was_there_stays_until_all_of_the_new_is_there(tmp_path: Path):
    path = tmp_path / "answer"
    path.write_text("old")

    def fail() -> None:
        with artifact.replacing(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["answer"]
    with artifact.replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_what_a_killed_writer_left_is_cleared_by_the_next(tmp_path: Path):
    path = tmp_path / "answer"
    subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert not path.exists()
    assert len(list(tmp_path.glob(".answer.*.tmp"))) == 1
    with artifact.replacing(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert not list(tmp_path.glob(".answer.*.tmp"))


def test_a_folder_replaces_a_full_folder(tmp_path: Path):
    path = tmp_path / "folder"
    for content in ("old", "new"):
        with artifact.replacing(path) as temporary:
            temporary.mkdir()
            (temporary / content).touch()
    assert [file.name for file in path.iterdir()] == ["new"]


def test_json_has_neither_nan_nor_infinity(tmp_path: Path):
    with pytest.raises(ValueError, match="JSON"):
        artifact.write_json(tmp_path / "metrics.json", {"loss": float("nan")})
    assert not (tmp_path / "metrics.json").exists()


def test_a_model_whose_weights_have_a_flipped_bit_is_named(tmp_path: Path):
    artifact.save_model(tmp_path, "encoder", {"weight": torch.ones(4)}, {"depth": 1})
    weights = tmp_path / "encoder.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match=r"encoder\.safetensors does not match the sha256 in encoder\.json"):
        artifact.read_model(tmp_path, "encoder")


def test_a_full_disk_leaves_the_previous_model_whole_and_says_so(small_disk: Path):
    artifact.save_model(small_disk, "encoder", {"weight": torch.ones(4)}, {"depth": 1})
    with pytest.raises(OSError, match=r"is full: encoder\.safetensors was not written, what was there before is whole"):
        artifact.save_model(small_disk, "encoder", {"weight": torch.ones(2**19)}, {"depth": 2})
    state, config = artifact.read_model(small_disk, "encoder")
    assert (state["weight"].tolist(), config["depth"]) == ([1.0] * 4, 1)
    assert sorted(os.listdir(small_disk)) == ["encoder.json", "encoder.safetensors"]


def test_a_full_disk_leaves_the_last_checkpoint_whole(small_disk: Path):
    checkpoint.save(small_disk, 1, {"step": 1, "weight": torch.ones(4)})
    with pytest.raises(OSError, match="is full: step-000000002 was not written"):
        checkpoint.save(small_disk, 2, {"step": 2, "weight": torch.ones(2**19)})
    found = checkpoint.latest(small_disk, map_location=torch.device("cpu"))
    assert found is not None
    assert found["step"] == 1


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"step": step})
    newest = tmp_path / "step-000000002/state.pt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    found = checkpoint.latest(tmp_path, map_location=torch.device("cpu"))
    assert found == {"step": 1}
    assert "step-000000002/state.pt does not match its manifest" in capsys.readouterr().err


def test_a_lock_names_its_holder(state_root: Path):
    with (
        artifact.lock("output", "here"),
        pytest.raises(BlockingIOError, match=f"process {os.getpid()} is already writing"),
        artifact.lock("output", "here"),
    ):
        pass
    with artifact.lock("output", "here"):
        pass
