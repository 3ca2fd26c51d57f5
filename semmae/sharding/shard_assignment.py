"""Assign a key and a shard to every input.

The hash of its key and the number of shards determine the shard of an input. Other inputs have no influence, so a new
image changes only one shard. Inputs that are indexed in place stay in their tar, in the order of the tar.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

from semmae.core import rng
from semmae.sharding.sources.source_item import SPLITS, SourceItem

MAX_KEY = 80  # in characters; every member name must fit into a plain tar header


class ShardGroup(NamedTuple):
    """The identity of a shard: samples with equal groups are in the same shard."""

    split: str  # "" for a tar that is indexed in place
    shard: int  # number of the shard in its split; -1 for a tar that is indexed in place
    tar: str  # path of the tar that is indexed in place; "" for a written shard


class ShardAssignment(NamedTuple):
    """An input with its key and shard."""

    source: str  # name of the source
    item: SourceItem
    key: str
    shard: int  # number of the shard in its split, where some numbers may be unused; -1 if indexed in place

    @property
    def group(self) -> ShardGroup:
        if self.shard >= 0:
            return ShardGroup(self.item.split, self.shard, "")
        return ShardGroup("", -1, self.item.image.file if self.item.image else "")  # a refused item has no tar


def assign_shards(
    items: dict[str, list[SourceItem]], *, seed: int, samples_per_shard: int, in_place: Collection[str] = ()
) -> list[ShardAssignment]:
    """Assign a key and a shard to every input.

    A split of n inputs has max(1, round(n / samples_per_shard)) shards. The shards divide the range of the hash into
    intervals of equal length, so all shards have about the same size. Samples in a shard are sorted by hash.

    Args:
        items: The inputs of each source.
        in_place: The sources whose inputs are indexed in place.

    Returns:
        The inputs in the order in which the writer writes them. Inputs of sources `in_place` come last.
    """
    pairs = [(name, item) for name, source_items in items.items() for item in source_items]
    prefix = {name: f"{name}/" if len(items) > 1 else "" for name in items}
    keys = unique_keys(
        [prefix[name] + item.path for name, item in pairs],
        [prefix[name] + (item.path if item.key is None else item.key) for name, item in pairs],
    )
    split_sizes = Counter(item.split for name, item in pairs if name not in in_place)
    written, indexed = [], []  # pairs of a sort key and an assignment
    for (name, item), key in zip(pairs, keys, strict=True):
        if name in in_place:
            assignment = ShardAssignment(name, item, key, -1)
            offset = item.image.offset if item.image else 0
            indexed.append(((name, assignment.group.tar, offset, item.path), assignment))
            continue
        key_hash = rng.fold(seed, "shuffle", key)
        shard = key_hash * max(1, round(split_sizes[item.split] / samples_per_shard)) >> 63
        written.append(((SPLITS.index(item.split), key_hash, key), ShardAssignment(name, item, key, shard)))
    return [assignment for _, assignment in sorted(written, key=lambda pair: pair[0])] + [
        assignment for _, assignment in sorted(indexed, key=lambda pair: pair[0])
    ]


def names_of_indexed_tars(assignments: list[ShardAssignment], folders: dict[str, str]) -> dict[str, str]:
    """Make a unique file name for each tar that is indexed in place, from its path in its source.

    Args:
        folders: The folder of each source that is indexed in place.

    Returns:
        The file name of each tar, by the path of the tar.

    Raises:
        ValueError: Two sources index the same tar.
    """
    source_of_tar: dict[str, str] = {}
    for assignment in assignments:
        tar, source = assignment.group.tar, assignment.source
        if tar and source_of_tar.setdefault(tar, source) != source:
            raise ValueError(f"sources {source_of_tar[tar]} and {source} both index {tar} in place")
    several_sources = len({assignment.source for assignment in assignments}) > 1
    paths = [
        (f"{name}/" if several_sources else "") + os.path.relpath(tar, os.path.abspath(folders[name]))
        for tar, name in source_of_tar.items()
    ]
    return {tar: f"{key}.tar" for tar, key in zip(source_of_tar, unique_keys(paths), strict=True)}


def unique_keys(paths: list[str], names: list[str] | None = None) -> list[str]:
    """Make a key for each path: the path without its extension, in which _ replaces all but letters, digits, - and _.

    A key that is too long, or equal to another key (ignoring case), is shortened and gets a digest of the path.

    Args:
        names: Strings from which the keys are made; None uses the paths.

    Raises:
        ValueError: Two keys are equal, because one path contains the digest of another path.
    """
    candidates = [re.sub(r"[^A-Za-z0-9_-]", "_", re.sub(r"\.[^./]*$", "", name)) for name in names or paths]
    count = Counter(key.lower() for key in candidates)
    keys = [
        key
        if count[key.lower()] == 1 and len(key) <= MAX_KEY
        else f"{key[: MAX_KEY - 17]}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
        for key, path in zip(candidates, paths, strict=True)
    ]
    if len(set(keys)) < len(keys):
        (repeated, _), *_ = Counter(keys).most_common()
        owners = [path for path, key in zip(paths, keys, strict=True) if key == repeated]
        raise ValueError(f"{' and '.join(owners)} would both get the key {repeated}; rename one")
    return keys
