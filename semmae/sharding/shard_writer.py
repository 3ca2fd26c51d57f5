"""Write a dataset: WebDataset tars, an index of byte offsets into them, and a list of rejected inputs.

Equal inputs and parameters give equal bytes with any number of workers. For this, the writer sorts the inputs, draws
their order from a seed, and omits times and owners in tar headers. It writes the dataset folder atomically.
"""

import hashlib
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

import webdataset

from semmae.console.tracking import tracked
from semmae.core.atomic_files import atomic_write, read_json, write_json
from semmae.core.digests import file_digest
from semmae.sharding import shard_index
from semmae.sharding.conversion import ConvertedItem, convert_all, source_digest
from semmae.sharding.shard_assignment import ShardAssignment, assign_shards, names_of_indexed_tars
from semmae.sharding.sources.source import Source
from semmae.sharding.sources.source_item import SourceItem


class WrittenTables(NamedTuple):
    """The tables that the writer collects while it writes the shards."""

    rows: list[tuple]  # rows of the index
    rejected: list[tuple[str, str]]  # path and reason
    contents: dict[str, list[tuple[SourceItem, str, str]]]  # items of each source, with digests of image and mask


def write(
    out: Path,
    sources: dict[str, Source],
    *,
    seed: int,
    short_side: int | None,
    samples_per_shard: int,
    max_rejects: float,
    workers: int,
) -> dict[str, Any]:
    """Write the union of the sources as a dataset.

    Args:
        out: Folder of the dataset.
        sources: The sources by name.
        seed: Seed of the order of samples, and of the splits that `val_fraction` draws.
        short_side: Reduce larger images to this short side, in pixels. None keeps their size.
        samples_per_shard: Average number of samples of a shard.
        max_rejects: Largest allowed fraction of rejected inputs, in [0, 1).
        workers: Number of processes that fetch and convert images; 0 uses this process.

    Returns:
        The content of shards.json.

    Raises:
        ValueError: A source cannot be listed, a split has no sample, or too many inputs are rejected.
    """
    sources = dict(sorted(sources.items()))
    in_place = _folders_in_place(sources, short_side=short_side)
    items = {name: source.list_items(seed=seed) for name, source in sources.items()}
    mask_kind, mask_names = _common_masks(sources)
    class_names = list(
        dict.fromkeys(chain.from_iterable(source.class_names(items[name]) for name, source in sources.items()))
    )
    assignments = assign_shards(items, seed=seed, samples_per_shard=samples_per_shard, in_place=in_place)
    tar_names = names_of_indexed_tars(assignments, in_place)
    converted = convert_all(assignments, sources, short_side=short_side, workers=workers)
    converted = tracked(converted, len(assignments), f"images of {out.name}")
    with atomic_write(out) as folder:
        folder.mkdir()
        rows, rejected, contents = _write_shards(folder, assignments, converted, class_names, tar_names)
        _check_rejects(assignments, rows, rejected, max_rejects=max_rejects)
        shard_index.write_table(folder / "index.parquet", shard_index.INDEX, rows)
        shard_index.write_table(folder / "rejected.parquet", shard_index.REJECTED, sorted(rejected))
        meta = shard_index.describe_shards(folder, rows, {name: tar for tar, name in tar_names.items()})
        meta |= {"class_names": class_names, "mask_kind": mask_kind, "mask_names": mask_names}
        meta["index_sha256"] = file_digest(folder / "index.parquet")
        meta["sources"] = {
            name: {
                "digest": source.digest(contents[name]),
                "inputs": len(items[name]),
                "weight": 1.0 if source.weight is None else source.weight,
            }
            for name, source in sources.items()
        }
        write_json(folder / "shards.json", meta)
    return meta


def changed_sources(dataset: Path, sources: dict[str, Source]) -> list[str]:
    """List the sources whose digest differs from the one in shards.json, including added and removed sources."""
    recorded = {name: entry["digest"] for name, entry in read_json(dataset / "shards.json")["sources"].items()}
    current = {name: source_digest(source) for name, source in sources.items()}
    return sorted(name for name in recorded.keys() | current.keys() if recorded.get(name) != current.get(name))


def _folders_in_place(sources: dict[str, Source], *, short_side: int | None) -> dict[str, str]:
    """Return the folders of the sources that are indexed in place, and check the names of all sources."""
    folders = {}
    for name, source in sources.items():
        if "/" in name:
            raise ValueError(f"invalid source name: {name!r}; expected a name without /. Rename it in params.yaml")
        if not source.indexed_in_place:
            continue
        if short_side is not None:
            raise ValueError(
                f"source {name} is indexed in place, so its images cannot be reduced to short_side {short_side}. "
                "Set short_side to null, or set in_place to false to copy the images"
            )
        folders[name] = source.location
    return folders


def _common_masks(sources: dict[str, Source]) -> tuple[str | None, list[str]]:
    """Return the kind and the names of the masks; raises ValueError if they differ between sources with masks."""
    masks_of = {name: masks for name, source in sources.items() if (masks := source.mask_names())[0]}
    for name, masks in masks_of.items():
        first = next(iter(masks_of))
        if masks != masks_of[first]:
            raise ValueError(
                f"the masks of sources {first} and {name} differ in kind or names; set masks of one source to null"
            )
    return next(iter(masks_of.values()), (None, []))


def _write_shards(
    folder: Path,
    assignments: list[ShardAssignment],
    converted: Iterable[ConvertedItem],
    class_names: list[str],
    tar_names: dict[str, str],
) -> WrittenTables:
    """Write the shards in the order of `assignments`. A shard without a sample gets neither a number nor a file."""
    tables = WrittenTables([], [], defaultdict(list))
    num_shards: Counter[str] = Counter()
    pairs = zip(assignments, converted, strict=True)
    for (split, number, tar), group in groupby(pairs, key=lambda pair: pair[0].group):
        accepted = _accepted_inputs(group, tables)
        if number < 0:
            tables.rows.extend(_indexed_row(tar_names[tar], *pair, class_names) for pair in accepted)
            continue
        name = f"{split}-{num_shards[split]:06d}.tar"
        with open(folder / name, "wb") as file, _tar_writer(file) as writer:
            rows = [_write_sample(writer, name, *pair, class_names) for pair in accepted]
        tables.rows.extend(rows)
        num_shards[split] += bool(rows)
        if not rows:
            (folder / name).unlink()
    return tables


def _accepted_inputs(
    group: Iterable[tuple[ShardAssignment, ConvertedItem]], tables: WrittenTables
) -> Iterator[tuple[ShardAssignment, ConvertedItem]]:
    """Record the digests of all inputs and the reasons of rejections in `tables`; yield the accepted inputs."""
    for assignment, converted in group:
        tables.contents[assignment.source].append((assignment.item, *converted.digests))
        if converted.image is None:
            tables.rejected.append((f"{assignment.source}/{assignment.item.path}", converted.reason))
        else:
            yield assignment, converted


def _tar_writer(file: Any) -> webdataset.TarWriter:
    """Open webdataset's tar writer with headers that depend only on the name and the size of a member."""
    return webdataset.TarWriter(file, encoder=False, user="", group="", mode=0o644, mtime=0, compress=False)


def _write_sample(
    writer: webdataset.TarWriter,
    shard: str,
    assignment: ShardAssignment,
    sample: ConvertedItem,
    class_names: list[str],
) -> tuple:
    """Append the members of a sample to a shard; returns the row of the sample for the index."""
    image, label, key = sample.image, assignment.item.label, assignment.key
    assert image is not None
    byte_range = _write_member(writer, key, image.extension, image.data)
    if label is not None:
        _write_member(writer, key, "cls", str(class_names.index(label)).encode())
    mask_range = None if sample.mask is None else _write_member(writer, key, "mask.png", sample.mask)
    digest = hashlib.sha256(image.data).hexdigest()
    return shard_index.index_row(
        assignment, shard, image, class_names, byte_range=byte_range, mask_range=mask_range, digest=digest
    )


def _write_member(writer: webdataset.TarWriter, key: str, extension: str, data: bytes) -> tuple[int, int]:
    """Append a member to a shard; returns the offset and the size of its data, in bytes."""
    writer.write({"__key__": key, extension: data})
    padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return writer.tarstream.offset - padded, len(data)  # after writing, the stream is at the end of the padded data


def _indexed_row(shard: str, assignment: ShardAssignment, sample: ConvertedItem, class_names: list[str]) -> tuple:
    """Make the row of the index for a sample that is indexed in place."""
    image, mask = assignment.item.image, assignment.item.mask
    assert image is not None
    assert sample.image is not None
    byte_range, mask_range = (image.offset, image.size), (mask.offset, mask.size) if mask else None
    return shard_index.index_row(
        assignment,
        shard,
        sample.image,
        class_names,
        byte_range=byte_range,
        mask_range=mask_range,
        digest=sample.digests[0],
    )


def _check_rejects(
    assignments: list[ShardAssignment],
    rows: list[tuple],
    rejected: list[tuple[str, str]],
    *,
    max_rejects: float,
) -> None:
    """Raise ValueError if too many inputs are rejected, or all inputs of a split.

    The message lists the five most frequent reasons.
    """
    empty = sorted({assignment.item.split for assignment in assignments} - {row[1] for row in rows})
    if len(rejected) <= max_rejects * len(assignments) and not empty:
        return
    cases = [(path, *reason.partition(": ")) for path, reason in sorted(rejected, reverse=True)]
    example = {kind: f"{path}{colon}{details}" for path, kind, colon, details in cases}
    reasons = Counter(sorted(kind for _, kind, *_ in cases)).most_common(5)
    listing = "".join(f"\n  {count} x {kind} (e.g. {example[kind]})" for kind, count in reasons)
    limit = f"so split {empty[0]} would be empty" if empty else f"max_rejects allows {max_rejects:.2%}"
    raise ValueError(
        f"{len(rejected)} of {len(assignments)} inputs are rejected, {limit}; the commonest reasons:{listing}"
    )
