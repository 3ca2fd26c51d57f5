"""The part-map cache: one label per cell of a coarse grid for every image, kept apart from the images.

- `write` / `read`: one Parquet file per shard, row i for sample i; the metadata says what it was made from.
- `quantize_attention`: class-token attention in 16 levels, the file's second column.
- `join`: the maps of a dataset in the order of a reader's samples; what does not belong to them is refused by name.
- the store: DVC deletes an output before it is made anew, so files live in a content-addressed store under the state
  root (`store_path`, `stored`), from which the output is assembled (`assemble`); `listing` and `prune` keep house.
- `summary`: how large the parts are, how many images use them, what they cost.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, Float64, Int64, Integer, UInt8
from torch import Tensor

from semmae.core.atomic_files import atomic_write
from semmae.core.digests import json_digest
from semmae.core.paths import state_root
from semmae.data.crops import crop_part_maps
from semmae.data.dataset import Reader

ATTENTION_LEVELS = 16
METADATA = ("grid", "num_parts", "background", "shard", "teacher", "parts")  # the last three are digests
REMEDY = "run dvc repro part_maps"
REVISION = 3  # of how a teacher and parts make labels: any edit that can change these raises it


@dataclass(frozen=True)
class PartMaps:
    """The part maps of some images, row by row."""

    keys: list[str]
    part_map: UInt8[np.ndarray, "b n"]
    attention: UInt8[np.ndarray, "b n"] | None
    metadata: dict[str, Any]  # METADATA; without `shard` after a join
    num_bytes: int  # of the files they were read from

    @property
    def grid(self) -> tuple[int, int]:
        h, w = self.metadata["grid"]
        return h, w

    def crops(
        self, name: str, rows: Int64[Tensor, " b"], spans: Float64[Tensor, "b 4"], grid: tuple[int, int]
    ) -> UInt8[Tensor, "b n"]:
        """The part_map or the attention of those rows as each crop sees it, on its own grid (`Box.span`)."""
        whole = getattr(self, name).reshape(-1, *self.grid)
        return torch.from_numpy(crop_part_maps(whole, rows.numpy(), spans.numpy(), grid))


def write(
    path: Path, *, keys: list[str], part_maps: UInt8[np.ndarray, "b n"], attention: UInt8[np.ndarray, "b n"] | None,
    metadata: dict[str, Any],
) -> None:  # fmt: skip
    """Write the part maps of one shard, atomically; the same content gives the same bytes."""
    h, w = metadata["grid"]
    background = metadata["background"]
    assert set(metadata) >= set(METADATA), metadata
    assert background in (None, metadata["num_parts"]), metadata
    assert part_maps.shape == (len(keys), h * w), (part_maps.shape, len(keys), h, w)
    assert part_maps.size == 0 or part_maps.max() < metadata["num_parts"] + (background is not None), part_maps.max()
    columns: dict[str, pa.Array] = {"key": pa.array(keys, pa.string()), "part_map": _binary(part_maps)}
    if attention is not None:
        assert attention.shape == part_maps.shape, attention.shape
        assert attention.size == 0 or attention.max() < ATTENTION_LEVELS, attention.max()
        columns["attention"] = _binary(attention)
    table = pa.table(columns).replace_schema_metadata({"semmae": json.dumps(metadata, sort_keys=True)})
    with atomic_write(path) as temporary:
        pq.write_table(
            table, temporary, compression="zstd", use_dictionary=False, write_statistics=False, write_page_checksum=True
        )


def read(path: Path) -> PartMaps:
    """The part maps in one file; ValueError when it is missing, damaged or something else."""
    table = _table(path)
    return PartMaps(
        keys=table["key"].to_pylist(),
        part_map=_cells(table["part_map"]),
        attention=_cells(table["attention"]) if "attention" in table.column_names else None,
        metadata=_metadata(table),
        num_bytes=path.stat().st_size,
    )


def quantize_attention(attention: Float[np.ndarray, "b n"]) -> UInt8[np.ndarray, "b n"]:
    """Attention in levels 0...15, proportional to it, each image's highest at 15; only 0 itself gets level 0.

    So a mask that draws patches in proportion can still draw every patch that the class token looks at.
    """
    if not ((attention >= 0) & np.isfinite(attention)).all():
        raise ValueError("attention holds negative numbers, NaN or infinity; expected weights >= 0")
    highest = np.maximum(attention.max(axis=1, keepdims=True), np.finfo(attention.dtype).tiny)
    levels = np.rint(attention / highest * (ATTENTION_LEVELS - 1))
    return np.where(attention > 0, np.maximum(levels, 1), 0).astype(np.uint8)


def join(folder: Path, reader: Reader, *, teacher: str | None, parts: str | None) -> PartMaps:
    """The part maps of `reader`'s samples, in its order; `teacher` and `parts` are the digests expected, None = any.

    ValueError when a shard has no file, a file was made from another shard, teacher or part learner, or a key is not
    where the index says.
    """
    encoded = pa.array(reader.shards).dictionary_encode()
    shard, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    paths = [folder / f"{Path(name).stem}.parquet" for name in names]
    if missing := [name for name, path in zip(names, paths, strict=True) if not path.exists()]:
        raise ValueError(f"{folder} has no part maps for {_some(missing, len(names), 'shards')}; {REMEDY}")
    known = {entry["file"]: entry for entry in reader.meta["shards"]}
    expected = {what: digest for what, digest in (("teacher", teacher), ("parts", parts)) if digest is not None}
    cells: dict[str, np.ndarray] = {}
    columns: list[str] = []
    misplaced: list[str] = []
    uneven = ""
    row, samples = reader.rows_in_shard(), np.split(shard.argsort(kind="stable"), np.bincount(shard).cumsum()[:-1])
    for name, path, ids in zip(names, paths, samples, strict=True):  # one file in memory at a time
        table = _table(path)
        columns = columns or table.column_names
        expected = _metadata(table) | expected
        _check(path, table, expected | {"shard": known[name]["sha256"]}, columns)
        if len(table) != (count := known[name]["count"]):
            uneven = f"{path} has {len(table)} part maps, but {name} has {count} samples; {REMEDY}"
        right = _in_place(table, [reader.keys[i] for i in ids], row[ids])
        misplaced += [reader.keys[i] for i in ids[~right]]
        for column in set(columns) - {"key"}:
            found = _cells(table[column])
            if column not in cells:
                cells[column] = np.empty((len(reader), found.shape[1]), np.uint8)
            cells[column][ids[right]] = found[row[ids[right]]]
    if misplaced:
        lost = _some(misplaced, len(reader), "samples")
        raise ValueError(f"{folder} has no part map in its place for {lost}; {REMEDY}")
    if uneven:
        raise ValueError(uneven)
    common = {what: value for what, value in expected.items() if what != "shard"}
    size = sum(path.stat().st_size for path in paths)
    return PartMaps(reader.keys, cells["part_map"], cells.get("attention"), common, size)


def _in_place(table: pa.Table, keys: list[str], row: Integer[np.ndarray, " k"]) -> Bool[np.ndarray, " k"]:
    """Whether each key stands in its row of the table."""
    found = table["key"].to_pylist()
    return np.array([r < len(found) and found[r] == key for key, r in zip(keys, row.tolist(), strict=True)], bool)


def _check(path: Path, table: pa.Table, expected: dict[str, Any], columns: list[str]) -> None:
    """ValueError unless the file was made from what is expected, and has the columns of the others."""
    given = _metadata(table) | {"columns": table.column_names}
    for what, value in (expected | {"columns": columns}).items():
        if given[what] != value:
            raise ValueError(f"{path} was made with {what} {given[what]}, but {value} is expected; {REMEDY}")


def store_digest(*, teacher: str, parts: str, params: Any) -> str:
    """The name of everything but the shard that decides a part map's bytes, the method of making it included."""
    return json_digest({"teacher": teacher, "parts": parts, "params": params, "revision": REVISION})


def store_path(digest: str, shard_sha256: str) -> Path:
    """Where the store keeps the part maps of a shard; write there with `write`."""
    return _store() / digest / f"{shard_sha256}.parquet"


def stored(digest: str, shard_sha256: str, *, keys: list[str]) -> bool:
    """Whether the store has the part maps of this shard, readable and for exactly these keys."""
    entry = store_path(digest, shard_sha256)
    try:
        found = read(entry)
        os.utime(entry)  # in use: `prune` keeps it until `assemble` comes
    except (ValueError, FileNotFoundError):
        return False
    return found.keys == keys and found.metadata["shard"] == shard_sha256


def assemble(folder: Path, *, digest: str, shards: Mapping[str, str]) -> None:
    """Replace `folder` by the stored part maps of `shards` (file name to sha256): copies, for DVC may relink them."""
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        for name, sha256 in shards.items():
            entry = store_path(digest, sha256)
            shutil.copyfile(entry, temporary / f"{Path(name).stem}.parquet")
            os.utime(entry)  # the time of last use, for `prune`


@dataclass(frozen=True)
class StoreEntry:
    """What the store keeps for one teacher, part learner and set of params."""

    digest: str
    num_shards: int
    num_bytes: int
    used: float  # seconds since 1970


def listing() -> list[StoreEntry]:
    """What the store holds, the last used first."""
    entries = []
    for folder in _store().glob("*/"):
        stats = [path.stat() for path in folder.glob("[!.]*.parquet")]
        if stats:
            used = max(stat.st_mtime for stat in stats)
            entries.append(StoreEntry(folder.name, len(stats), sum(stat.st_size for stat in stats), used))
    return sorted(entries, key=lambda entry: -entry.used)


def prune(*, unused_days: float) -> int:
    """Delete what was not used for so many days, remains of interrupted writes included; the number of bytes freed."""
    freed = 0
    for path in [path for path in _store().glob("*/*") if path.stat().st_mtime <= time.time() - unused_days * 86_400]:
        freed += path.stat().st_size
        path.unlink()
    for folder in _store().glob("*/"):
        if not any(folder.iterdir()):
            folder.rmdir()
    return freed


def summary(maps: PartMaps) -> dict[str, Any]:
    """Per label its share of all cells and the share of images with any cell of it; bytes per image on disk."""
    num_parts, background = maps.metadata["num_parts"], maps.metadata["background"]
    labels = [*range(num_parts), *([] if background is None else [background])]
    return {
        "images": len(maps.keys),
        "grid": list(maps.grid),
        "bytes_per_image": maps.num_bytes / len(maps.keys),
        "parts": {
            "background" if label == background else str(label): {
                "size": float((maps.part_map == label).mean()),
                "images": float((maps.part_map == label).any(axis=1).mean()),
            }
            for label in labels
        },
    }


def _store() -> Path:
    return state_root() / "part_maps"


def _some(names: list[str], total: int, what: str) -> str:
    return f"{len(names)} of {total} {what}, e.g. {', '.join(names[:3])}"


def _table(path: Path) -> pa.Table:
    """The file's content, checked against its checksums and its own metadata."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; {REMEDY}")
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and {REMEDY}") from None
    except KeyError as error:  # damage of the footer, which has no checksum
        raise ValueError(f"{path} is damaged (no {error}); delete it and {REMEDY}") from None
    if b"semmae" not in (table.schema.metadata or {}):
        raise ValueError(f"{path} is a Parquet file, but none of part maps; delete it and {REMEDY}")
    try:
        whole = set(METADATA) <= set(_metadata(table)) and {"key", "part_map"} <= set(table.column_names)
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(f"{path} is damaged: its metadata are not whole; delete it and {REMEDY}")
    return table


def _metadata(table: pa.Table) -> dict[str, Any]:
    return json.loads(table.schema.metadata[b"semmae"])


def _binary(cells: UInt8[np.ndarray, "b n"]) -> pa.Array:
    """Each row as bytes of fixed size."""
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(cells.shape[1]), len(cells), [None, pa.py_buffer(np.ascontiguousarray(cells))]
    )


def _cells(column: pa.ChunkedArray) -> UInt8[np.ndarray, "b n"]:
    """The inverse of `_binary`, without a copy."""
    array = column.combine_chunks()
    width = array.type.byte_width
    return np.frombuffer(array.buffers()[1], np.uint8).reshape(-1, width)[array.offset : array.offset + len(array)]
