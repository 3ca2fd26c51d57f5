"""What a dataset says of itself: the index of its samples, the list of its rejects, and its shards.

The contract is in docs/data.md; `semmae.data.dataset` reads all of it.
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
from semmae.sharding.sources.layout import SPLITS

INDEX = pa.schema(
    {
        "key": pa.string(),
        "split": pa.string(),
        "shard": pa.string(),
        "offset": pa.int64(),  # of the image's bytes in the shard
        "size": pa.int64(),
        "mask_offset": pa.int64(),  # null: no mask
        "mask_size": pa.int64(),
        "orientation": pa.int8(),  # EXIF, for the reader to apply
        "width": pa.int32(),  # once it is applied
        "height": pa.int32(),
        "label": pa.int64(),  # null: none
        "class_name": pa.string(),
        "sha256": pa.string(),  # of the image's bytes
        "source": pa.string(),
    }
)
REJECTED = pa.schema({"source": pa.string(), "reason": pa.string()})


def row(
    task: ShardAssignment, shard: str, image: decoding.Stored, classes: list[str], span: tuple[int, int],
    mask: tuple[int, int] | None, digest: str,
) -> tuple:  # fmt: skip
    """A row of the index; a span is offset and size."""
    label = task.entry.label
    return (
        task.key, task.entry.split, shard, *span, *(mask or (None, None)), image.orientation, *image.size,
        None if label is None else classes.index(label), label, digest, f"{task.source}/{task.entry.path}",
    )  # fmt: skip


def manifest(folder: Path, rows: list[tuple], located: dict[str, str]) -> dict[str, Any]:
    """What shards.json says of the shards and of the size of the splits; `located` names tars that are not in `folder`.

    The split of such a tar is null when it holds several. ValueError: two of them are the same, so that part maps of
    one would be taken for those of the other.
    """
    count = Counter((row[2], row[1]) for row in rows)
    splits: dict[str, list[str]] = defaultdict(list)
    for file, split in count:
        splits[file].append(split)
    paths = [Path(located.get(file, folder / file)) for file in splits]
    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(file_digest, paths))
    holders: dict[str, Path] = {}
    for path, digest in zip(paths, digests, strict=True):
        if (first := holders.setdefault(digest, path)) != path:
            raise ValueError(f"{first} and {path} have the same bytes; leave one of them out")
    shards = [
        {
            "file": file,
            "split": have[0] if len(have) == 1 else None,
            "count": sum(count[file, split] for split in have),
            "bytes": path.stat().st_size,
            "sha256": digest,
            **({"location": str(path)} if file in located else {}),
        }
        for (file, have), path, digest in zip(splits.items(), paths, digests, strict=True)
    ]
    samples = Counter(row[1] for row in rows)
    return {"shards": shards, "samples": {split: samples[split] for split in SPLITS if samples[split]}}


def write_table(path: Path, schema: pa.Schema, rows: list[tuple]) -> None:
    columns: list[Any] = list(zip(*rows, strict=True)) or [[] for _ in schema]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    pq.write_table(pa.table(arrays, schema=schema), path, compression="zstd")
