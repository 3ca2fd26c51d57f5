"""A dataset on disk: plain WebDataset tars, the index that makes them random-access, and what was refused.

- `write(out, sources)`: list the entries, plan their places, fetch and convert them in worker processes, write.
- `plan`: a global shuffle by hash. An entry's place depends on its key and the number of shards, not on its
  neighbours, so one image more changes one shard.
- `source_digest`, `check`: has a source changed since it was written?

The same input and parameters give the same bytes, whatever the number of workers: sorted entries, seeded order, tar
headers without time or owner, results written in planned order. The folder appears whole or not at all.
"""

import hashlib
import io
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from semmae import artifact, images, pool, rng, sources
from semmae.layout import SPLITS
from semmae.sources import Entry, Source

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
MAX_KEY = 80  # characters, so that every member's name fits a plain tar header


class Task(NamedTuple):
    """An entry and its place."""

    source: str  # name of the source
    entry: Entry
    key: str
    shard: int  # number in its split, gaps possible


class Sample(NamedTuple):
    """An entry fetched and converted, or the reason why it is refused."""

    image: images.Stored | None
    mask: bytes | None
    digests: tuple[str, str]  # of the bytes of image and mask as they came
    reason: str


def write(
    out: Path,
    named: dict[str, Source],
    *,
    seed: int,
    short_side: int | None,
    samples_per_shard: int,
    max_rejects: float,
    workers: int,
) -> dict[str, Any]:
    """Write the dataset that the `named` sources make up into the folder `out`; returns the content of its shards.json.

    ValueError: a source that cannot be listed, a split without a sample, more rejects than the fraction `max_rejects`.
    """
    named = dict(sorted(named.items()))
    found = {name: sources.entries(source, seed=seed) for name, source in named.items()}
    kind, names = _masks(named)
    classes = list(dict.fromkeys(chain(*(sources.class_names(source, found[name]) for name, source in named.items()))))
    tasks = plan(found, seed=seed, samples_per_shard=samples_per_shard)
    convert = partial(_sample, named=named, short_side=short_side)
    samples = pool.watched(pool.mapped(convert, tasks, workers=workers), len(tasks), f"images of {out.name}")
    with artifact.replacing(out) as folder:
        folder.mkdir()
        rows, rejected, contents = _write_tars(folder, tasks, samples, classes)
        _judge(tasks, rows, rejected, max_rejects=max_rejects)
        _write_table(folder / "index.parquet", INDEX, rows)
        _write_table(folder / "rejected.parquet", REJECTED, sorted(rejected))
        meta = {"shards": _manifest(folder, rows), "class_names": classes, "mask_kind": kind, "mask_names": names}
        meta["sources"] = {
            name: {"digest": sources.digest(source, contents[name]), "inputs": len(found[name])}
            for name, source in named.items()
        }
        artifact.write_json(folder / "shards.json", meta)
    return meta


def plan(found: dict[str, list[Entry]], *, seed: int, samples_per_shard: int) -> list[Task]:
    """Every entry with its key and shard, in the order of writing.

    A split of n entries has round(n / samples_per_shard) shards, at least one. The hash of a key is a point in [0, 1);
    the shards are equal intervals of it, so about equally full; in a shard the order is that of the points.
    """
    entries = [(name, entry) for name, listed in found.items() for entry in listed]
    keys = unique_keys([f"{name}/{entry.path}" if len(found) > 1 else entry.path for name, entry in entries])
    sizes = Counter(entry.split for _, entry in entries)
    placed = []
    for (name, entry), key in zip(entries, keys, strict=True):
        point = rng.fold(seed, "shuffle", key)
        shard = point * max(1, round(sizes[entry.split] / samples_per_shard)) >> 63
        placed.append(((SPLITS.index(entry.split), point, key), Task(name, entry, key, shard)))
    return [task for _, task in sorted(placed, key=lambda place: place[0])]


def unique_keys(paths: list[str]) -> list[str]:
    """A key per path: the path without its extension, in letters, digits, - and _ only, so with neither dot nor folder.

    Where that is too long, or the same for several paths (letter case aside), the key ends in a digest of the path.
    """
    plain = [re.sub(r"[^A-Za-z0-9_-]", "_", re.sub(r"\.[^./]*$", "", path)) for path in paths]
    count = Counter(key.lower() for key in plain)
    keys = [
        key
        if count[key.lower()] == 1 and len(key) <= MAX_KEY
        else f"{key[: MAX_KEY - 17]}-{hashlib.sha256(path.encode()).hexdigest()[:16]}"
        for key, path in zip(plain, paths, strict=True)
    ]
    assert len(set(keys)) == len(keys), "two paths have one key"
    return keys


def source_digest(source: Source) -> str:
    """The identity of a source as it lies now: of everything that `write` would read."""
    found = sources.entries(source, seed=0)
    if isinstance(source, sources.Creatures):
        return sources.digest(source, [])
    with ThreadPoolExecutor() as threads:  # reading and hashing leave the interpreter free
        digests = threads.map(lambda entry: _digests(*_fetched(source, entry)[:2]), found)
        return sources.digest(source, ((entry.path, *both) for entry, both in zip(found, digests, strict=True)))


def check(dataset: Path, named: dict[str, Source]) -> list[str]:
    """The names of the sources that are not as they were when `dataset` was written."""
    recorded = {name: entry["digest"] for name, entry in artifact.read_json(dataset / "shards.json")["sources"].items()}
    now = {name: source_digest(source) for name, source in named.items()}
    return sorted(name for name in recorded.keys() | now.keys() if recorded.get(name) != now.get(name))


def _masks(named: dict[str, Source]) -> tuple[str | None, list[str]]:
    """The kind and names of masks that all sources with masks share."""
    masked = {name: masks for name, source in named.items() if (masks := sources.mask_names(source))[0]}
    for name, masks in masked.items():
        first = next(iter(masked))
        if masks != masked[first]:
            raise ValueError(
                f"the masks of sources {first} and {name} differ in kind or names; drop those of one (null)"
            )
    return next(iter(masked.values()), (None, []))


def _fetched(source: Source, entry: Entry) -> tuple[bytes | None, bytes | None, str]:
    """Image, mask, and the reason if they cannot be had."""
    try:
        return *sources.fetch(source, entry), ""
    except ValueError as error:
        return None, None, str(error)
    except OSError as error:
        return None, None, f"the file cannot be read: {error.strerror}"


def _digests(image: bytes | None, mask: bytes | None) -> tuple[str, str]:
    first, second = ("" if data is None else hashlib.sha256(data).hexdigest() for data in (image, mask))
    return first, second


def _sample(task: Task, *, named: dict[str, Source], short_side: int | None) -> Sample:
    """What a worker does: fetch, decode once, convert; whatever is wrong becomes the reason."""
    source = named[task.source]
    image, mask, reason = _fetched(source, task.entry)
    digests = _digests(image, mask)
    if image is None:
        return Sample(None, None, digests, reason)
    try:
        stored = images.canonical(image, short_side=short_side)
        if mask is not None:
            mask = images.canonical_mask(mask, stored, num_names=len(sources.mask_names(source)[1]))
    except ValueError as error:
        return Sample(None, None, digests, str(error))
    return Sample(stored, mask, digests, "")


def _write_tars(
    folder: Path, tasks: list[Task], samples: Iterable[Sample], classes: list[str]
) -> tuple[list[tuple], list[tuple[str, str]], dict[str, list[tuple[str, str, str]]]]:
    """Write the shards; returns the rows of index and rejected, and per source (path, digest of image, of mask)."""
    rows: list[tuple] = []
    rejected: list[tuple[str, str]] = []
    contents: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    numbers: Counter[str] = Counter()
    pairs = zip(tasks, samples, strict=True)
    for (split, _), group in groupby(pairs, key=lambda pair: (pair[0].entry.split, pair[0].shard)):
        name = f"{split}-{numbers[split]:06d}.tar"
        kept = len(rows)
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for task, sample in group:
                contents[task.source].append((task.entry.path, *sample.digests))
                if sample.image is None:
                    rejected.append((f"{task.source}/{task.entry.path}", sample.reason))
                else:
                    rows.append(_add_sample(tar, name, task, sample, classes))
        if len(rows) == kept:
            (folder / name).unlink()  # nothing in it was accepted
        else:
            numbers[split] += 1
    return rows, rejected, contents


def _add_sample(tar: tarfile.TarFile, shard: str, task: Task, sample: Sample, classes: list[str]) -> tuple:
    """Append the members of a sample; returns its row of the index."""
    image = sample.image
    assert image is not None
    label = None if task.entry.label is None else classes.index(task.entry.label)
    offset = _add(tar, f"{task.key}.{image.extension}", image.data)
    if label is not None:
        _add(tar, f"{task.key}.cls", str(label).encode())
    mask_offset = None if sample.mask is None else _add(tar, f"{task.key}.mask.png", sample.mask)
    return (
        task.key, task.entry.split, shard, offset, len(image.data), mask_offset, sample.mask and len(sample.mask),
        image.orientation, *image.size, label, task.entry.label, hashlib.sha256(image.data).hexdigest(),
        f"{task.source}/{task.entry.path}",
    )  # fmt: skip


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member; returns where its data begin. TarInfo's own defaults are no time, no owner, mode 644."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE  # after the header, one block since the name is short
    tar.addfile(info, io.BytesIO(data))
    return offset


def _judge(tasks: list[Task], rows: list[tuple], rejected: list[tuple[str, str]], *, max_rejects: float) -> None:
    """Refuse a dataset with too many rejects, or with a split that they have emptied."""
    empty = sorted({task.entry.split for task in tasks} - {row[1] for row in rows})
    if len(rejected) <= max_rejects * len(tasks) and not empty:
        return
    cases = [(where, *reason.partition(": ")) for where, reason in sorted(rejected, reverse=True)]
    example = {kind: f"{where}{colon}{details}" for where, kind, colon, details in cases}
    reasons = Counter(sorted(kind for _, kind, *_ in cases)).most_common(5)
    told = "".join(f"\n  {count} x {kind} (e.g. {example[kind]})" for kind, count in reasons)
    rule = f"so split {empty[0]} would be empty" if empty else f"max_rejects allows {max_rejects:.2%}"
    raise ValueError(f"{len(rejected)} of {len(tasks)} inputs are rejected, {rule}; the commonest reasons:{told}")


def _manifest(folder: Path, rows: list[tuple]) -> list[dict[str, Any]]:
    count = Counter((row[2], row[1]) for row in rows)
    return [
        {
            "file": file,
            "split": split,
            "count": count[file, split],
            "bytes": (folder / file).stat().st_size,
            "sha256": artifact.sha256(folder / file),
        }
        for file, split in count
    ]


def _write_table(path: Path, schema: pa.Schema, rows: list[tuple]) -> None:
    columns: list[Any] = list(zip(*rows, strict=True)) or [[] for _ in schema]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    pq.write_table(pa.table(arrays, schema=schema), path, compression="zstd")
