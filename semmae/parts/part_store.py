"""A content-addressed store of part maps, in a folder outside the outputs of DVC (`paths.state_root`).

DVC deletes the output of a stage before the stage runs. The stage `part_maps` therefore writes each file to this store
and copies the files of its dataset to the output. Shards that did not change are never computed again.

The address of a file is `<digest>/<sha256 of the shard>.parquet`. The digest covers the teacher, the part learner, the
parameters, and the source code that affects labels (`label_source_digest`).
"""

import ast
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semmae.core.atomic_files import atomic_write
from semmae.core.digests import json_digest
from semmae.core.paths import state_root
from semmae.parts import part_maps

ROOT = Path(__file__).parents[2]
LABEL_MODULES = (  # all modules whose code affects the labels or the files that store them
    "semmae.data.crops",
    "semmae.data.decoding",
    "semmae.data.jpeg",
    "semmae.data.patch_masks",
    "semmae.data.transforms",
    "semmae.models.teacher",
    "semmae.models.vit",
    "semmae.parts.attention_parts",
    "semmae.parts.component_foreground",
    "semmae.parts.content_keys",
    "semmae.parts.foreground",
    "semmae.parts.foreground_cues",
    "semmae.parts.grid_parts",
    "semmae.parts.kmeans_parts",
    "semmae.parts.paper_learner",
    "semmae.parts.part_learner",
    "semmae.parts.part_maps",
    "semmae.parts.part_method",
    "semmae.parts.part_methods",
    "semmae.parts.position_keys",
    "semmae.parts.soft_maps",
    "semmae.parts.truth_parts",
    "stages.part_maps",
)


@dataclass(frozen=True)
class StoreEntry:
    """The part maps of one teacher, part learner and set of parameters.

    Attributes:
        digest: The name of the folder in the store.
        num_shards: Number of files.
        num_bytes: Total size of the files.
        used: Time of the last use, in seconds since 1970.
    """

    digest: str
    num_shards: int
    num_bytes: int
    used: float


def store_digest(*, teacher: str, parts: str, params: Any) -> str:
    """Compute the digest of everything that decides the bytes of a file, except the shard.

    Args:
        teacher: Digest of the teacher.
        parts: Digest of the part learner.
        params: The parameters of the stage that change labels, as JSON values.
    """
    return json_digest({"teacher": teacher, "parts": parts, "params": params, "source": label_source_digest(ROOT)})


def label_source_digest(root: Path) -> str:
    """Compute the digest of the code of `LABEL_MODULES`. Comments, docstrings and layout do not change it.

    Args:
        root: The folder that holds `semmae` and `stages`.
    """
    return json_digest({module: _code(root / f"{module.replace('.', '/')}.py") for module in LABEL_MODULES})


def store_path(digest: str, shard_sha256: str) -> Path:
    """Return where the store keeps the part maps of a shard. Write the file with `part_maps.write`."""
    return _root() / digest / f"{shard_sha256}.parquet"


def is_stored(digest: str, shard_sha256: str, *, keys: list[str]) -> bool:
    """Return whether the store has readable part maps of a shard for exactly these keys, and mark them as used."""
    path = store_path(digest, shard_sha256)
    try:
        stored = part_maps.read(path)
        os.utime(path)  # so that `prune` keeps the file until `assemble` copies it
    except (ValueError, FileNotFoundError):
        return False
    return stored.keys == keys and stored.metadata["shard"] == shard_sha256


def assemble(folder: Path, *, digest: str, shards: Mapping[str, str]) -> None:
    """Replace `folder` by copies of stored files.

    The files must be copies, because DVC may replace the files of an output by links.

    Args:
        folder: The output.
        digest: From `store_digest`.
        shards: File name and SHA-256 of each shard.

    Raises:
        FileNotFoundError: The store lacks a file. `folder` stays unchanged.
    """
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        for name, sha256 in shards.items():
            path = store_path(digest, sha256)
            shutil.copyfile(path, temporary / f"{Path(name).stem}.parquet")
            os.utime(path)  # the time of last use, for `prune`


def list_entries() -> list[StoreEntry]:
    """Return the entries of the store, the most recently used first."""
    entries = []
    for folder in _root().glob("*/"):
        stats = [path.stat() for path in folder.glob("[!.]*.parquet")]
        if stats:
            used = max(stat.st_mtime for stat in stats)
            entries.append(StoreEntry(folder.name, len(stats), sum(stat.st_size for stat in stats), used))
    return sorted(entries, key=lambda entry: -entry.used)


def prune(*, unused_days: float) -> int:
    """Delete files that were not used for `unused_days` days, including temporary files of interrupted writes.

    Returns:
        The number of bytes deleted.
    """
    freed = 0
    for path in [path for path in _root().glob("*/*") if path.stat().st_mtime <= time.time() - unused_days * 86_400]:
        freed += path.stat().st_size
        path.unlink()
    for folder in _root().glob("*/"):
        if not any(folder.iterdir()):
            folder.rmdir()
    return freed


def _root() -> Path:
    return state_root() / "part_maps"


def _code(path: Path) -> str:
    """Return the syntax tree of a file without docstrings, as text."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)
