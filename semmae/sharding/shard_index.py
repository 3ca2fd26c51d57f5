"""The tables of a dataset: the index of its samples, the list of its rejects, and the list of its shards.

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
        "width": pa.int32(),  # of the upright image
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
    span: tuple[int, int],
    mask_span: tuple[int, int] | None,
    digest: str,
) -> tuple:
    """Make a row of the index; a span is offset and size in bytes."""
    label = assignment.item.label
    return (
        assignment.key,
        assignment.item.split,
        shard,
        *span,
        *(mask_span or (None, None)),
        image.orientation,
        *image.size,
        None if label is None else class_names.index(label),
        label,
        digest,
        f"{assignment.source}/{assignment.item.path}",
    )


def describe_shards(folder: Path, rows: list[tuple], locations: dict[str, str]) -> dict[str, Any]:
    """Make the entries `shards` and `samples` of shards.json.

    The split of a shard is null if it holds several.

    Args:
        rows: The rows of the index.
        locations: Paths of the tars that are indexed in place, by shard name. Other shards are in `folder`.

    Raises:
        ValueError: Two tars have equal bytes, so part maps of one would be taken for those of the other.
    """
    count = Counter((row[2], row[1]) for row in rows)
    splits: dict[str, list[str]] = defaultdict(list)
    for file, split in count:
        splits[file].append(split)
    paths = [Path(locations.get(file, folder / file)) for file in splits]
    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(file_digest, paths))
    path_of_digest: dict[str, Path] = {}
    for path, digest in zip(paths, digests, strict=True):
        if (first := path_of_digest.setdefault(digest, path)) != path:
            raise ValueError(f"{first} and {path} have the same bytes; leave one of them out")
    shards = [
        {
            "file": file,
            "split": present[0] if len(present) == 1 else None,
            "count": sum(count[file, split] for split in present),
            "bytes": path.stat().st_size,
            "sha256": digest,
            **({"location": str(path)} if file in locations else {}),
        }
        for (file, present), path, digest in zip(splits.items(), paths, digests, strict=True)
    ]
    samples = Counter(row[1] for row in rows)
    return {"shards": shards, "samples": {split: samples[split] for split in SPLITS if samples[split]}}


def write_table(path: Path, schema: pa.Schema, rows: list[tuple]) -> None:
    """Write rows to a Parquet file."""
    columns: list[Any] = list(zip(*rows, strict=True)) or [[] for _ in schema]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    pq.write_table(pa.table(arrays, schema=schema), path, compression="zstd")
