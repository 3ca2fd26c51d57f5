"""The key and the shard of every input: a shuffle by hash of the key.

The shard of an input depends on its key and on the number of shards, not on other inputs. So a new image changes one
shard. Inputs that are indexed in place stay in their tar, in its order.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

from semmae.core import rng
from semmae.sharding.sources.source_item import SPLITS, SourceItem

MAX_KEY = 80  # characters, so that every member name fits into a plain tar header


class ShardGroup(NamedTuple):
    """What the samples of one shard have in common."""

    split: str  # "" for a tar that is indexed in place
    shard: int  # number in the split; -1 for a tar that is indexed in place
    tar: str  # path of the tar that is indexed in place; "" for a written shard


class ShardAssignment(NamedTuple):
    """An input with its key and shard."""

    source: str  # name of the source
    item: SourceItem
    key: str
    shard: int  # number in its split, with gaps; -1: indexed in place

    @property
    def group(self) -> ShardGroup:
        if self.shard >= 0:
            return ShardGroup(self.item.split, self.shard, "")
        return ShardGroup("", -1, self.item.image.file if self.item.image else "")  # a refused item has no tar


def assign_shards(
    items: dict[str, list[SourceItem]], *, seed: int, samples_per_shard: int, in_place: Collection[str] = ()
) -> list[ShardAssignment]:
    """Assign a key and a shard to every input.

    A split of n inputs has round(n / samples_per_shard) shards, but at least one. The hash of a key is a number in
    [0, 1), and each shard is an interval of equal length, so shards are of about equal size. Samples in a shard are
    sorted by that number.

    Args:
        items: The inputs of each source.
        in_place: The sources whose inputs are indexed in place.

    Returns:
        The inputs in the order of writing; those of sources `in_place` come last.
    """
    pairs = [(name, item) for name, source_items in items.items() for item in source_items]
    prefix = {name: f"{name}/" if len(items) > 1 else "" for name in items}
    keys = unique_keys(
        [prefix[name] + item.path for name, item in pairs],
        [prefix[name] + (item.path if item.key is None else item.key) for name, item in pairs],
    )
    split_sizes = Counter(item.split for name, item in pairs if name not in in_place)
    written, indexed = [], []  # with a sort key each
    for (name, item), key in zip(pairs, keys, strict=True):
        if name in in_place:
            assignment = ShardAssignment(name, item, key, -1)
            offset = item.image.offset if item.image else 0
            indexed.append(((name, assignment.group.tar, offset, item.path), assignment))
            continue
        point = rng.fold(seed, "shuffle", key)
        shard = point * max(1, round(split_sizes[item.split] / samples_per_shard)) >> 63
        written.append(((SPLITS.index(item.split), point, key), ShardAssignment(name, item, key, shard)))
    return [assignment for _, assignment in sorted(written, key=lambda pair: pair[0])] + [
        assignment for _, assignment in sorted(indexed, key=lambda pair: pair[0])
    ]


def names_of_indexed_tars(assignments: list[ShardAssignment], folders: dict[str, str]) -> dict[str, str]:
    """Give every tar that is indexed in place a plain, unique file name, made from its path in its source.

    Args:
        folders: The folder of each source that is indexed in place.

    Returns:
        The names by the path of the tar.

    Raises:
        ValueError: Two sources index one tar.
    """
    owner: dict[str, str] = {}
    for assignment in assignments:
        tar, source = assignment.group.tar, assignment.source
        if tar and owner.setdefault(tar, source) != source:
            raise ValueError(f"sources {owner[tar]} and {source} both index {tar} in place")
    several = len({assignment.source for assignment in assignments}) > 1
    paths = [
        (f"{name}/" if several else "") + os.path.relpath(tar, os.path.abspath(folders[name]))
        for tar, name in owner.items()
    ]
    return {tar: f"{key}.tar" for tar, key in zip(owner, unique_keys(paths), strict=True)}


def unique_keys(paths: list[str], names: list[str] | None = None) -> list[str]:
    """Make a key of letters, digits, - and _ for each path: the path without its extension.

    If a key is too long, or equal for several paths (ignoring case), it ends in a digest of the path.

    Args:
        names: Texts to make the keys from; None uses the paths.

    Raises:
        ValueError: A path imitates the digest of another one, so that two keys are equal.
    """
    plain = [re.sub(r"[^A-Za-z0-9_-]", "_", re.sub(r"\.[^./]*$", "", name)) for name in names or paths]
    count = Counter(key.lower() for key in plain)
    keys = [
        key
        if count[key.lower()] == 1 and len(key) <= MAX_KEY
        else f"{key[: MAX_KEY - 17]}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
        for key, path in zip(plain, paths, strict=True)
    ]
    if len(set(keys)) < len(keys):
        (repeated, _), *_ = Counter(keys).most_common()
        owners = [path for path, key in zip(paths, keys, strict=True) if key == repeated]
        raise ValueError(f"{' and '.join(owners)} would both get the key {repeated}; rename one")
    return keys
