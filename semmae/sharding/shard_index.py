"""The tables of a dataset: the index of samples, the list of rejected inputs, and the list of shards.

docs/data/format.md describes the format; `semmae.data.dataset` reads it.
"""

from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from semmae.core.digests import file_digest
from semmae.data import decoding
from semmae.sharding.shard_assignment import ShardAssignment
from semmae.sharding.sources.source_item import SPLITS

INDEX = pa.schema(
    {
        "key": pa.string(),
        "split": pa.string(),
        "shard": pa.string(),
        "offset": pa.int64(),  # first byte of the image in the shard
        "size": pa.int64(),
        "mask_offset": pa.int64(),  # null: no mask
        "mask_size": pa.int64(),
        "orientation": pa.int8(),  # EXIF orientation that decoding applies
        "width": pa.int32(),  # of the upright image, in pixels
        "height": pa.int32(),
        "label": pa.int64(),  # null: no label
        "class_name": pa.string(),
        "sha256": pa.string(),  # digest of the encoded image
        "source": pa.string(),
    }
)
REJECTED = pa.schema({"source": pa.string(), "reason": pa.string()})


def index_row(
    assignment: ShardAssignment,
    shard: str,
    image: decoding.StoredImage,
    class_names: list[str],
    *,
    byte_range: tuple[int, int],
    mask_range: tuple[int, int] | None,
    digest: str,
) -> tuple:
    """Make a row of the index; `byte_range` and `mask_range` are an offset and a size in bytes."""
    label = assignment.item.label
    return (
        assignment.key,
        assignment.item.split,
        shard,
        *byte_range,
        *(mask_range or (None, None)),
        image.orientation,
        *image.size,
        None if label is None else class_names.index(label),
        label,
        digest,
        f"{assignment.source}/{assignment.item.path}",
    )


def describe_shards(folder: Path, rows: list[tuple], locations: dict[str, str]) -> dict[str, Any]:
    """Make the entries `shards` and `samples` of shards.json.

    The entry `split` of a shard is null if the shard holds samples of several splits.

    Args:
        rows: The rows of the index.
        locations: Path of each tar that is indexed in place, by shard name. All other shards are in `folder`.

    Raises:
        ValueError: Two shards have equal bytes. Part maps refer to a shard by its digest, so digests must be unique.
    """
    count = Counter((row[2], row[1]) for row in rows)
    splits_of_shard: dict[str, list[str]] = defaultdict(list)
    for file, split in count:
        splits_of_shard[file].append(split)
    paths = [Path(locations.get(file, folder / file)) for file in splits_of_shard]
    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(file_digest, paths))
    path_of_digest: dict[str, Path] = {}
    for path, digest in zip(paths, digests, strict=True):
        if (first := path_of_digest.setdefault(digest, path)) != path:
            raise ValueError(f"{first} and {path} have the same bytes; leave one of them out")
    shards = [
        {
            "file": file,
            "split": shard_splits[0] if len(shard_splits) == 1 else None,
            "count": sum(count[file, split] for split in shard_splits),
            "bytes": path.stat().st_size,
            "sha256": digest,
            **({"location": str(path)} if file in locations else {}),
        }
        for (file, shard_splits), path, digest in zip(splits_of_shard.items(), paths, digests, strict=True)
    ]
    samples = Counter(row[1] for row in rows)
    return {"shards": shards, "samples": {split: samples[split] for split in SPLITS if samples[split]}}


def write_table(path: Path, schema: pa.Schema, rows: list[tuple]) -> None:
    """Write rows to a Parquet file."""
    columns: list[Any] = list(zip(*rows, strict=True)) or [[] for _ in schema]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    pq.write_table(pa.table(arrays, schema=schema), path, compression="zstd")
