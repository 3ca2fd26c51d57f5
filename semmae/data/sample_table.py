"""The index of a dataset in memory: one column per property, one row per sample."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float64, Int32, Int64, Integer

COLUMNS = ("key", "split", "shard", "offset", "size", "mask_offset", "mask_size", "height", "width", "label")


@dataclass(frozen=True)
class SampleTable:
    """The columns of the index that reading and training need.

    Numbers are stored in numpy arrays, and each shard name is stored once. A million samples take about 150 MB.
    """

    keys: list[str]
    shard: Integer[np.ndarray, " n"]  # index into the shard names that `read` returns
    row: Int64[np.ndarray, " n"]  # position of the sample in its shard
    image_range: Int64[np.ndarray, "n 2"]  # offset and size of the image in the shard, in bytes
    mask_range: Int64[np.ndarray, "n 2"]  # offset and size of the mask; -1 for a sample without a mask
    size: Int32[np.ndarray, "n 2"]  # height and width of the upright image, in pixels
    label: Int64[np.ndarray, " n"]  # -1 for a sample without a label
    weight: Float64[np.ndarray, " n"] | None  # average visits per epoch; None: one visit

    def take(self, indices: Integer[np.ndarray, " k"]) -> "SampleTable":
        """Select rows, in the order of `indices`."""
        return SampleTable(**{field.name: _take(getattr(self, field.name), indices) for field in fields(self)})


def read(dataset: Path, split: str | None, sources: dict[str, Any]) -> tuple[SampleTable, list[str]]:
    """Read the index of a dataset.

    Args:
        split: The split to read; None reads all splits.
        sources: The entry `sources` of shards.json. It holds the weight of each source.

    Returns:
        The samples in the order of the index, and the names of the shards.

    Raises:
        ValueError: The dataset has no such split.
    """
    weighted = any(source.get("weight", 1.0) != 1.0 for source in sources.values())
    table = pq.read_table(dataset / "index.parquet", columns=[*COLUMNS, *(["source"] if weighted else [])])
    shards = table["shard"].combine_chunks().dictionary_encode()
    shard, shard_names = shards.indices.to_numpy(), shards.dictionary.to_pylist()
    row = _rows_in_shards(shard)
    if split is not None:
        splits = table["split"].unique().to_pylist()
        if split not in splits:
            raise ValueError(f"{dataset} has no split {split!r}; its splits are: {', '.join(splits)}")
        in_split = pc.equal(table["split"], split)
        rows_in_split = in_split.to_numpy()
        table, shard, row = table.filter(in_split), shard[rows_in_split], row[rows_in_split]
    samples = SampleTable(
        keys=table["key"].to_pylist(),
        shard=shard,
        row=row,
        image_range=np.stack([_integers(table["offset"]), _integers(table["size"])], axis=1),
        mask_range=np.stack([_integers(table["mask_offset"]), _integers(table["mask_size"])], axis=1),
        size=np.stack([_integers(table["height"]), _integers(table["width"])], axis=1).astype(np.int32),
        label=_integers(table["label"]),
        weight=_sample_weights(table["source"], sources) if weighted else None,
    )
    del table, shards
    pa.default_memory_pool().release_unused()  # Arrow keeps freed memory by default
    return samples, shard_names


def _take(column: Any, indices: Integer[np.ndarray, " k"]) -> Any:
    if column is None:
        return None
    return [column[i] for i in indices] if isinstance(column, list) else column[indices]


def _rows_in_shards(shard: Integer[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Number the samples of each shard from 0. The index lists the samples of a shard consecutively, in shard order."""
    is_first, position = np.diff(shard, prepend=-1) != 0, np.arange(len(shard))
    return position - np.maximum.accumulate(np.where(is_first, position, 0))


def _sample_weights(column: Any, sources: dict[str, Any]) -> Float64[np.ndarray, " n"]:
    """Look up the weight of each sample. The first part of each path in `column` is the name of a source."""
    weight_of_source = {name: float(source.get("weight", 1.0)) for name, source in sources.items()}
    names = pc.list_element(pc.split_pattern(column, "/", max_splits=1), 0).combine_chunks().dictionary_encode()
    return np.array([weight_of_source[name] for name in names.dictionary.to_pylist()])[names.indices.to_numpy()]


def _integers(column: Any) -> Int64[np.ndarray, " n"]:
    """Convert a column to integers, with -1 for null."""
    return column.fill_null(-1).to_numpy().astype(np.int64)
