"""Existing files stay whole if the disk is full or a writer is killed."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from semmae.core import checkpoint
from semmae.core.atomic_files import _process_namespace, atomic_write
from semmae.core.digests import file_digest
from semmae.core.locks import exclusive_lock
from semmae.core.model_files import load_model, save_model
from semmae.data.dataset import Reader
from semmae.evaluation.mapped_rows import MappedRows
from semmae.sharding import shard_writer
from semmae.sharding.sources.sources import Creatures
from tests.project import Project

KILLED = """
import os, signal, sys
from pathlib import Path
from semmae.core.atomic_files import atomic_write
with atomic_write(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of one megabyte, outside of the folders that other sessions of pytest clean up."""
    with tempfile.TemporaryDirectory(prefix="semmae-disk-") as disk:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True).returncode:
            pytest.skip("no right to mount a small file system here")
        yield Path(disk)
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_the_next_writer_removes_the_temporary_of_a_killed_one(tmp_path: Path):
    path = tmp_path / "answer"
    subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert not path.exists()
    assert len(list(tmp_path.glob(".answer.*.tmp"))) == 1
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert not list(tmp_path.glob(".answer.*.tmp"))


def test_a_temporary_of_another_container_stays_unless_it_is_old(tmp_path: Path):
    """A process id of another container means nothing here: each container counts from 1."""
    namespaces = _process_namespace(), "there", "old"
    ours, theirs, old = (tmp_path / f".answer.{namespace}.{os.getpid()}.tmp" for namespace in namespaces)
    for path in (theirs, old):
        path.write_text("half")
    os.utime(old, (0, 0))
    with atomic_write(tmp_path / "answer") as temporary:
        assert temporary == ours
        temporary.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == [theirs.name, "answer"]
    assert theirs.read_text() == "half"


def test_a_full_disk_leaves_the_previous_model_whole_and_says_so(small_disk: Path):
    save_model(small_disk, "encoder", {"weight": torch.ones(4)}, {"depth": 1})
    with pytest.raises(
        OSError, match=r"is full: encoder\.safetensors was not written, and any previous version is intact"
    ):
        save_model(small_disk, "encoder", {"weight": torch.ones(2**19)}, {"depth": 2})
    state, config = load_model(small_disk, "encoder")
    assert (state["weight"].tolist(), config["depth"]) == ([1.0] * 4, 1)
    assert sorted(os.listdir(small_disk)) == ["encoder.json", "encoder.safetensors"]


def test_a_disk_with_room_for_the_weights_only_leaves_the_previous_model_whole(small_disk: Path):
    save_model(small_disk, "encoder", {"weight": torch.ones(4)}, {"depth": 1})
    with pytest.raises(OSError, match=r"is full: encoder\.\S+ was not written, and any previous version is intact"):
        save_model(small_disk, "encoder", {"weight": torch.zeros(4)}, {"depth": 1, "long": "x" * 2**20})
    state, config = load_model(small_disk, "encoder")
    assert (state["weight"].tolist(), config["depth"]) == ([1.0] * 4, 1)
    assert sorted(os.listdir(small_disk)) == ["encoder.json", "encoder.safetensors"]


def test_a_full_disk_leaves_the_last_checkpoint_whole(small_disk: Path):
    checkpoint.save(small_disk, 1, {"step": 1, "weight": torch.ones(4)})
    with pytest.raises(OSError, match="is full: step-000000002 was not written"):
        checkpoint.save(small_disk, 2, {"step": 2, "weight": torch.ones(2**19)})
    saved = checkpoint.load_latest(small_disk, map_location=torch.device("cpu"))
    assert saved is not None
    assert saved["step"] == 1


def test_a_full_disk_leaves_the_previous_shards_whole(small_disk: Path):
    def write(train: int) -> None:
        source = Creatures(kind="creatures", train=train, val=8, size=96, seed=0)
        shard_writer.write(
            small_disk / "toy", {"toy": source}, seed=0, short_side=None, samples_per_shard=100, max_rejects=0.0,
            workers=0,
        )  # fmt: skip

    write(8)
    with pytest.raises(OSError, match="is full: toy was not written"):
        write(300)
    assert len(Reader(small_disk / "toy")) == 16
    assert os.listdir(small_disk) == ["toy"]


def test_a_full_disk_under_features_raises_an_error_and_no_bus_error(small_disk: Path):
    """Rows are written before they are mapped: a mapped page without room on the disk would kill the process."""
    rows = MappedRows(256, small_disk / "train")
    for _ in range(3):
        rows.append(torch.ones(256, 256))
    with pytest.raises(OSError, match="is full: train was not written"):
        rows.append(torch.ones(512, 256))
    again = MappedRows(256, small_disk / "train")
    assert len(again) >= 768
    again.truncate(768)
    assert again.as_tensor().sum() == 768 * 256


def test_a_lock_on_a_full_disk_raises_an_error(small_disk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEMMAE_STATE", str(small_disk))
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(OSError, match=r"is full: [0-9a-f]+ was not written"), exclusive_lock("output", "x"):
        pass


def files(folder: Path) -> dict[str, str]:
    """Return the digest of every file under a folder, links followed."""
    paths = [Path(at, name) for at, _, names in os.walk(folder, followlinks=True) for name in names]
    return {str(path.relative_to(folder)): file_digest(path) for path in paths}


@pytest.mark.parametrize(
    ("command", "place", "room", "named"),
    [
        ("shards toy", "project/data/shards", 2**16, "toy"),
        ("part_maps", "project/data/part_maps", 0, "toy"),
        ("part_maps", "state/part_maps", 0, r"[0-9a-f]{64}\.parquet"),
        ("pretrain", "state/runs", 2**16, "step-000000004"),
    ],
    ids=["shards", "part maps", "store of part maps", "checkpoint"],
)
def test_a_full_disk_ends_a_stage_with_one_sentence_and_the_stage_resumes_when_there_is_room(
    small_disk: Path, toy: Project, command: str, place: str, room: int, named: str
):
    toy.set("part_maps.attention", False)  # so the store has no part maps for it
    shutil.move(toy.root / place, small_disk / "moved")
    (toy.root / place).symlink_to(small_disk / "moved")
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
    outputs, on_disk = files(toy.folder / "data"), files(small_disk)
    output = toy.stage(*command.split(), expect=1)
    sentence = (
        rf"^error: the disk of \S+ is full: {named} was not written, and any previous version is intact; free some"
    )
    assert re.search(sentence, output, re.MULTILINE), output
    assert "Traceback" not in output
    assert files(toy.folder / "data") == outputs
    left = {path: digest for path, digest in files(small_disk).items() if not path.endswith("/identity.json")}
    assert left == on_disk
    (small_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    toy.stage(*command.split())
