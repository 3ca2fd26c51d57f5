"""A file is read once per change, and its digest is right even if the file or the cache was damaged."""

import os
import shutil
from pathlib import Path

import pytest

from semmae.core import hash_cache
from semmae.core.digests import file_digest


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shard.tar"
    path.write_bytes(b"one")
    os.utime(path, (1, 1))  # older than MIN_AGE
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read."""
    read: list[Path] = []
    monkeypatch.setattr(hash_cache, "file_digest", lambda path: read.append(path) or file_digest(path))
    return read


def test_a_file_is_read_once_until_it_changes(shard: Path, reads: list[Path]):
    first = hash_cache.cached_digest(shard)
    assert hash_cache.cached_digest(shard) == first == file_digest(shard)
    assert len(reads) == 1
    shard.write_bytes(b"two")
    os.utime(shard, (2, 2))
    assert hash_cache.cached_digest(shard) == file_digest(shard) != first


def test_the_digest_of_a_file_written_just_now_is_not_cached(shard: Path, reads: list[Path]):
    shard.write_bytes(b"now")
    assert hash_cache.cached_digest(shard) == hash_cache.cached_digest(shard)
    assert len(reads) == 2


def test_a_damaged_cache_costs_one_read(shard: Path, state_root: Path, reads: list[Path]):
    first = hash_cache.cached_digest(shard)
    for entry in (state_root / "digests").iterdir():
        entry.write_text("[")
    assert hash_cache.cached_digest(shard) == first
    shutil.rmtree(state_root / "digests")
    assert hash_cache.cached_digest(shard) == first
    assert len(reads) == 3


def test_entries_of_deleted_files_and_damaged_entries_are_pruned(shard: Path, state_root: Path, reads: list[Path]):
    shutil.copy2(shard, other := shard.with_name("other.tar"))
    hash_cache.cached_digest(shard), hash_cache.cached_digest(other)
    assert hash_cache.prune() == 0
    other.unlink()
    (state_root / "digests/.half.tmp").write_text("")  # another process is writing
    assert hash_cache.prune() == 1
    (state_root / "digests/.half.tmp").unlink()
    hash_cache.cached_digest(shard)
    assert len(reads) == 2  # its entry was kept
    (entry,) = (state_root / "digests").iterdir()
    entry.write_text("[")
    assert hash_cache.prune() == 1
