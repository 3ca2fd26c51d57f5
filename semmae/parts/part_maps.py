"""The format of cached part maps: one Parquet file per shard, one row per image.

Row i of a file belongs to sample i of the shard. The column `part_map` holds one label per patch, the optional column
`attention` one level per patch. The metadata of a file holds the digests of its shard, teacher and part learner.
`join` rejects files whose digests do not match those of the reader.
"""

import json
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
from semmae.data.crops import crop_part_maps
from semmae.data.dataset import Reader

ATTENTION_LEVELS = 16
METADATA = ("grid", "num_parts", "background", "shard", "teacher", "parts")  # the last three are digests
REMEDY = "run dvc repro part_maps"


@dataclass(frozen=True)
class PartMaps:
    """The part maps of some images, one row per image.

    Attributes:
        keys: The key of each image.
        channels: Arrays of shape (images, patches) by name. `part_map` holds labels: 0 to `num_parts - 1`, and
            `num_parts` for the background. The optional `attention` holds levels from 0 to 15.
        metadata: The keys in `METADATA`; `join` leaves out `shard`.
        num_bytes: Total size of the files that were read.
    """

    keys: list[str]
    channels: dict[str, UInt8[np.ndarray, "b n"]]
    metadata: dict[str, Any]
    num_bytes: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        h, w = self.metadata["grid"]
        return h, w

    def crops(
        self, channel: str, rows: Int64[Tensor, " b"], spans: Float64[Tensor, "b 4"], grid: tuple[int, int]
    ) -> UInt8[Tensor, "b n"]:
        """Crop one channel of a batch of images.

        Args:
            channel: A key of `channels`.
            rows: The rows of the images.
            spans: The crop of each image, as `Box.span`.
            grid: Rows and columns of patches in a crop.
        """
        whole = self.channels[channel].reshape(-1, *self.grid)
        return torch.from_numpy(crop_part_maps(whole, rows.numpy(), spans.numpy(), grid))


def write(
    path: Path,
    *,
    keys: list[str],
    channels: dict[str, UInt8[np.ndarray, "b n"]],
    metadata: dict[str, Any],
) -> None:
    """Write the part maps of one shard atomically. Equal content gives equal bytes.

    Args:
        path: The Parquet file to write.
        keys: The key of each image, in the order of the shard.
        channels: `part_map` and optionally `attention`, as in `PartMaps`.
        metadata: All keys in `METADATA`.
    """
    h, w = metadata["grid"]
    assert set(metadata) >= set(METADATA), metadata
    assert metadata["background"] in (None, metadata["num_parts"]), metadata
    columns: dict[str, pa.Array] = {"key": pa.array(keys, pa.string())}
    for name, values in _ordered(channels).items():
        assert values.shape == (len(keys), h * w), (name, values.shape, len(keys), h, w)
        assert values.size == 0 or values.max() < num_values(name, metadata), (name, values.max())
        columns[name] = _to_binary(values)
    table = pa.table(columns).replace_schema_metadata({"semmae": json.dumps(metadata, sort_keys=True)})
    with atomic_write(path) as temporary:
        pq.write_table(
            table, temporary, compression="zstd", use_dictionary=False, write_statistics=False, write_page_checksum=True
        )


def read(path: Path) -> PartMaps:
    """Read the part maps of one shard.

    Raises:
        ValueError: The file is missing, damaged, not a file of part maps, or holds values out of range.
    """
    table = _read_table(path)
    return PartMaps(table["key"].to_pylist(), _read_channels(path, table), _metadata(table), path.stat().st_size)


def join(folder: Path, reader: Reader, *, teacher: str | None, parts: str | None) -> PartMaps:
    """Read the part maps of a reader's samples, in the reader's order.

    Args:
        folder: One Parquet file per shard, with the stem of the shard.
        reader: The samples.
        teacher: The expected digest of the teacher; None accepts any.
        parts: The expected digest of the part learner; None accepts any.

    Raises:
        ValueError: A file is missing or damaged, was made from another shard, teacher or part learner, or holds values
            out of range. The error is also raised if the key of a sample is not in its row.
    """
    encoded = pa.array(reader.shards).dictionary_encode()
    shard_of_sample, shards = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    paths = [folder / f"{Path(shard).stem}.parquet" for shard in shards]
    if missing := [shard for shard, path in zip(shards, paths, strict=True) if not path.exists()]:
        raise ValueError(f"{folder} has no part maps for {_examples(missing, len(shards), 'shards')}; {REMEDY}")
    entries = {entry["file"]: entry for entry in reader.meta["shards"]}
    expected = {name: digest for name, digest in (("teacher", teacher), ("parts", parts)) if digest is not None}
    channels: dict[str, np.ndarray] = {}
    columns: list[str] = []
    misplaced: list[str] = []
    wrong_length = ""
    row = reader.rows_in_shard()
    samples = np.split(shard_of_sample.argsort(kind="stable"), np.bincount(shard_of_sample).cumsum()[:-1])
    for shard, path, indices in zip(shards, paths, samples, strict=True):  # one file in memory at a time
        table = _read_table(path)
        columns = columns or table.column_names  # all files must have the columns and metadata of the first file
        expected = _metadata(table) | expected
        _check_origin(path, table, expected | {"shard": entries[shard]["sha256"]}, columns)
        if len(table) != (count := entries[shard]["count"]):
            wrong_length = f"{path} has {len(table)} part maps, but {shard} has {count} samples; {REMEDY}"
        matches = _keys_match(table, [reader.keys[i] for i in indices], row[indices])
        misplaced += [reader.keys[i] for i in indices[~matches]]
        for name, values in _read_channels(path, table).items():
            if name not in channels:
                channels[name] = np.empty((len(reader), values.shape[1]), np.uint8)
            channels[name][indices[matches]] = values[row[indices[matches]]]
    if misplaced:
        examples = _examples(misplaced, len(reader), "samples")
        raise ValueError(f"{folder} has no part map in the right row for {examples}; {REMEDY}")
    if wrong_length:
        raise ValueError(wrong_length)
    metadata = {name: value for name, value in expected.items() if name != "shard"}
    return PartMaps(reader.keys, channels, metadata, sum(path.stat().st_size for path in paths))


def num_values(channel: str, metadata: dict[str, Any]) -> int:
    """Return the number of possible values of a channel; they start at 0."""
    if channel == "attention":
        return ATTENTION_LEVELS
    return metadata["num_parts"] + (metadata["background"] is not None)


def quantize_attention(attention: Float[np.ndarray, "b n"]) -> UInt8[np.ndarray, "b n"]:
    """Quantize attention to the levels 0 to 15, in proportion to the maximum of each image.

    Only zero attention gets level 0. So a mask strategy that samples patches in proportion to their level can reach
    every patch with positive attention.

    Args:
        attention: Weights of at least 0.

    Raises:
        ValueError: A weight is negative or not finite.
    """
    if not ((attention >= 0) & np.isfinite(attention)).all():
        raise ValueError("attention holds negative numbers, NaN or infinity; expected weights >= 0")
    highest = np.maximum(attention.max(axis=1, keepdims=True), np.finfo(attention.dtype).tiny)
    levels = np.rint(attention / highest * (ATTENTION_LEVELS - 1))
    return np.where(attention > 0, np.maximum(levels, 1), 0).astype(np.uint8)


def summarize(maps: PartMaps) -> dict[str, Any]:
    """Compute the metrics of the stage `part_maps`.

    Returns:
        `images`, `grid`, `bytes_per_image` and `parts`. For each label, `parts` holds `size` and `images`: the share of
        patches with this label, and the share of images with such a patch.
    """
    num_parts, background = maps.metadata["num_parts"], maps.metadata["background"]
    labels, part_map = [*range(num_parts), *([] if background is None else [background])], maps.channels["part_map"]
    return {
        "images": len(maps.keys),
        "grid": list(maps.grid),
        "bytes_per_image": maps.num_bytes / len(maps.keys),
        "parts": {
            "background" if label == background else str(label): {
                "size": float((part_map == label).mean()),
                "images": float((part_map == label).any(axis=1).mean()),
            }
            for label in labels
        },
    }


def _ordered(channels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the channels in the order of the file's columns."""
    assert "part_map" in channels, list(channels)
    assert set(channels) <= {"part_map", "attention"}, list(channels)
    return {name: channels[name] for name in ("part_map", "attention") if name in channels}


def _keys_match(table: pa.Table, keys: list[str], row: Integer[np.ndarray, " k"]) -> Bool[np.ndarray, " k"]:
    """Return whether each key is in its row of the table."""
    stored = table["key"].to_pylist()
    return np.array([r < len(stored) and stored[r] == key for key, r in zip(keys, row.tolist(), strict=True)], bool)


def _check_origin(path: Path, table: pa.Table, expected: dict[str, Any], columns: list[str]) -> None:
    """Raise ValueError unless the file has the expected metadata and columns."""
    actual = _metadata(table) | {"columns": table.column_names}
    for name, value in (expected | {"columns": columns}).items():
        if actual[name] != value:
            raise ValueError(f"{path} was made with {name} {actual[name]}, but {value} is expected; {REMEDY}")


def _examples(names: list[str], total: int, noun: str) -> str:
    return f"{len(names)} of {total} {noun}, e.g. {', '.join(names[:3])}"


def _read_table(path: Path) -> pa.Table:
    """Read a file and verify its checksums and the presence of metadata and columns."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; {REMEDY}")
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and {REMEDY}") from None
    except KeyError as error:  # damage of the footer, which has no checksum
        raise ValueError(f"{path} is damaged (no {error}); delete it and {REMEDY}") from None
    if b"semmae" not in (table.schema.metadata or {}):
        raise ValueError(f"{path} is a Parquet file without part maps; delete it and {REMEDY}")
    try:
        complete = set(METADATA) <= set(_metadata(table)) and {"key", "part_map"} <= set(table.column_names)
    except ValueError:
        complete = False
    if not complete:
        raise ValueError(f"{path} is damaged: its metadata or columns are incomplete; delete it and {REMEDY}")
    return table


def _read_channels(path: Path, table: pa.Table) -> dict[str, UInt8[np.ndarray, "b n"]]:
    """Check the values of all channels of a table, and return the channels."""
    channels = {name: _from_binary(table[name]) for name in table.column_names if name != "key"}
    for name, values in channels.items():
        limit = num_values(name, _metadata(table))
        if values.size and (highest := int(values.max())) >= limit:
            raise ValueError(
                f"{path} holds the {name} value {highest}; expected 0 to {limit - 1}. Delete it and {REMEDY}"
            )
    return channels


def _metadata(table: pa.Table) -> dict[str, Any]:
    return json.loads(table.schema.metadata[b"semmae"])


def _to_binary(values: UInt8[np.ndarray, "b n"]) -> pa.Array:
    """Convert each row to one value of fixed-size binary."""
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(values.shape[1]), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))]
    )


def _from_binary(column: pa.ChunkedArray) -> UInt8[np.ndarray, "b n"]:
    """Invert `_to_binary` without a copy."""
    array = column.combine_chunks()
    width = array.type.byte_width
    return np.frombuffer(array.buffers()[1], np.uint8).reshape(-1, width)[array.offset : array.offset + len(array)]
