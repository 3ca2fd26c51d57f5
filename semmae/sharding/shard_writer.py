"""A dataset on disk: plain WebDataset tars, the index that makes them random-access, and what was refused.

- `write(out, sources)`: list the entries, plan their places, fetch and convert them in worker processes, write.
- `shard_assignment` says where every entry goes. Sources in place are judged like the others, but not copied: the index
  points into their tars, whose `location` stands in shards.json.
- `source_digest`, `check`: has a source changed since it was written?

The same input and parameters give the same bytes, whatever the number of workers: sorted entries, seeded order, tar
headers without time or owner, results written in planned order. The folder appears whole or not at all.
"""

import hashlib
import io
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

from semmae.console.tracking import tracked
from semmae.core.atomic_files import atomic_write, read_json, write_json
from semmae.core.digests import file_digest
from semmae.core.worker_pool import ordered_map
from semmae.data import decoding
from semmae.sharding import shard_index
from semmae.sharding.shard_assignment import ShardAssignment, plan, shard_names
from semmae.sharding.sources import sources
from semmae.sharding.sources.source_item import Entry
from semmae.sharding.sources.sources import Source

CHUNK = 16  # entries that travel to a worker process and back together
PREFETCH = 4  # chunks per worker that are in progress or finished ahead of the writer


class Sample(NamedTuple):
    """An entry fetched and converted, or the reason why it is refused."""

    image: decoding.Stored | None
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
    still = _in_place(named, short_side=short_side)
    found = {name: sources.entries(source, seed=seed) for name, source in named.items()}
    kind, names = _masks(named)
    classes = list(dict.fromkeys(chain(*(sources.class_names(source, found[name]) for name, source in named.items()))))
    tasks = plan(found, seed=seed, samples_per_shard=samples_per_shard, in_place=still)
    names_in_place = shard_names(tasks, still)
    samples = tracked(
        _converted(tasks, named=named, short_side=short_side, workers=workers), len(tasks), f"images of {out.name}"
    )
    with atomic_write(out) as folder:
        folder.mkdir()
        rows, rejected, contents = _write_tars(folder, tasks, samples, classes, names_in_place)
        _judge(tasks, rows, rejected, max_rejects=max_rejects)
        shard_index.write_table(folder / "index.parquet", shard_index.INDEX, rows)
        shard_index.write_table(folder / "rejected.parquet", shard_index.REJECTED, sorted(rejected))
        located = {name: tar for tar, name in names_in_place.items()}
        meta: dict[str, Any] = shard_index.manifest(folder, rows, located)
        meta |= {"class_names": classes, "mask_kind": kind, "mask_names": names}
        meta["index_sha256"] = file_digest(folder / "index.parquet")
        meta["sources"] = {
            name: {
                "digest": sources.digest(source, contents[name]),
                "inputs": len(found[name]),
                "weight": 1.0 if source.weight is None else source.weight,
            }
            for name, source in named.items()
        }
        write_json(folder / "shards.json", meta)
    return meta


def source_digest(source: Source) -> str:
    """The identity of a source as it lies now: of everything that `write` would read."""
    found = sources.entries(source, seed=0)
    if isinstance(source, sources.Creatures):
        return sources.digest(source, [])
    alone = isinstance(source, sources.TorchVision)  # whose datasets may not stand several threads
    with ThreadPoolExecutor(1 if alone else None) as threads:  # reading and hashing leave the interpreter free
        digests = threads.map(lambda entry: _digests(*_fetched(source, entry)[:2]), found)
        return sources.digest(source, ((entry, *both) for entry, both in zip(found, digests, strict=True)))


def check(dataset: Path, named: dict[str, Source]) -> list[str]:
    """The names of the sources that are not as they were when `dataset` was written."""
    recorded = {name: entry["digest"] for name, entry in read_json(dataset / "shards.json")["sources"].items()}
    now = {name: source_digest(source) for name, source in named.items()}
    return sorted(name for name in recorded.keys() | now.keys() if recorded.get(name) != now.get(name))


def _in_place(named: dict[str, Source], *, short_side: int | None) -> dict[str, str]:
    """The folders of the sources whose images stay where they are. ValueError: what cannot be done to these."""
    for name, source in named.items():
        if "/" in name:
            raise ValueError(f"the name of a source is {name!r}; expected one without /, change it in params.yaml")
        if sources.in_place(source) and short_side is not None:
            raise ValueError(
                f"source {name} is indexed in place, so its images cannot be reduced to short_side {short_side}; "
                "set short_side to null, or in_place to false, which copies them"
            )
    return {name: source.path for name, source in named.items() if sources.in_place(source)}


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
        return None, None, f"the file cannot be read: {error.strerror or error}"


def _digests(image: bytes | None, mask: bytes | None) -> tuple[str, str]:
    first, second = ("" if data is None else hashlib.sha256(data).hexdigest() for data in (image, mask))
    return first, second


def _converted(
    tasks: list[ShardAssignment], *, named: dict[str, Source], short_side: int | None, workers: int
) -> Iterator[Sample]:
    """Fetch and convert all entries in worker processes, in chunks, and yield the samples in the order of `tasks`.

    The workers come from a fork server: a fork of this process would copy locks that threads of torch or Arrow hold.
    """
    chunks = [tasks[i : i + CHUNK] for i in range(0, len(tasks), CHUNK)]
    convert = partial(_convert, named=named, short_side=short_side)
    samples = ordered_map(
        convert, chunks, workers=workers, start_method="forkserver", preload=[__name__], prefetch=PREFETCH
    )
    return chain.from_iterable(samples)


def _convert(chunk: list[ShardAssignment], *, named: dict[str, Source], short_side: int | None) -> list[Sample]:
    return [_sample(task, named=named, short_side=short_side) for task in chunk]


def _sample(task: ShardAssignment, *, named: dict[str, Source], short_side: int | None) -> Sample:
    """What a worker does: fetch, decode once, convert; whatever is wrong becomes the reason."""
    source = named[task.source]
    image, mask, reason = _fetched(source, task.entry)
    digests = _digests(image, mask)
    if image is None:
        return Sample(None, None, digests, reason)
    try:
        stored = decoding.as_it_is(image) if task.shard < 0 else decoding.canonical(image, short_side=short_side)
        if mask is not None:
            mask = decoding.canonical_mask(mask, stored, num_names=len(sources.mask_names(source)[1]))
    except ValueError as error:
        return Sample(None, None, digests, str(error))
    return Sample(stored, mask, digests, "")


def _write_tars(
    folder: Path,
    tasks: list[ShardAssignment],
    samples: Iterable[Sample],
    classes: list[str],
    names_in_place: dict[str, str],
) -> tuple[list[tuple], list[tuple[str, str]], dict[str, list[tuple[Entry, str, str]]]]:
    """Write the shards; returns the rows of index and rejected, and per source (entry, digest of image, of mask)."""
    rows: list[tuple] = []
    rejected: list[tuple[str, str]] = []
    contents: dict[str, list[tuple[Entry, str, str]]] = defaultdict(list)
    numbers: Counter[str] = Counter()

    def accepted(group: Iterable[tuple[ShardAssignment, Sample]]) -> Iterator[tuple[ShardAssignment, Sample]]:
        for task, sample in group:
            contents[task.source].append((task.entry, *sample.digests))
            if sample.image is None:
                rejected.append((f"{task.source}/{task.entry.path}", sample.reason))
            else:
                yield task, sample

    for (split, number, tar), group in groupby(zip(tasks, samples, strict=True), key=lambda pair: pair[0].place):
        if number < 0:
            rows += [_row_in_place(names_in_place[tar], *pair, classes) for pair in accepted(group)]
            continue
        name, kept = f"{split}-{numbers[split]:06d}.tar", len(rows)
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as shard:
            rows += [_add_sample(shard, name, *pair, classes) for pair in accepted(group)]
        if len(rows) == kept:
            (folder / name).unlink()  # nothing in it was accepted
        else:
            numbers[split] += 1
    return rows, rejected, contents


def _add_sample(tar: tarfile.TarFile, shard: str, task: ShardAssignment, sample: Sample, classes: list[str]) -> tuple:
    """Append the members of a sample; returns its row of the index."""
    image = sample.image
    assert image is not None
    offset = _add(tar, f"{task.key}.{image.extension}", image.data)
    if task.entry.label is not None:
        _add(tar, f"{task.key}.cls", str(classes.index(task.entry.label)).encode())
    mask = None if sample.mask is None else (_add(tar, f"{task.key}.mask.png", sample.mask), len(sample.mask))
    digest = hashlib.sha256(image.data).hexdigest()
    return shard_index.row(task, shard, image, classes, (offset, len(image.data)), mask, digest)


def _row_in_place(shard: str, task: ShardAssignment, sample: Sample, classes: list[str]) -> tuple:
    """The row of a sample that stays where it lies."""
    blob, mask = task.entry.image, task.entry.mask
    assert blob is not None
    assert sample.image is not None
    return shard_index.row(task, shard, sample.image, classes, blob[1:], mask and mask[1:], sample.digests[0])


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member; returns where its data begin. TarInfo's own defaults are no time, no owner, mode 644."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE  # after the header, one block since the name is short
    tar.addfile(info, io.BytesIO(data))
    return offset


def _judge(
    tasks: list[ShardAssignment], rows: list[tuple], rejected: list[tuple[str, str]], *, max_rejects: float
) -> None:
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
