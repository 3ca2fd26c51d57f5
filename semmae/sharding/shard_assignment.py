"""Where every input goes: its key and its shard.

A global shuffle by hash: an entry's place depends on its key and the number of shards, not on its neighbors, so one
image more changes one shard. What is indexed in place keeps its tar, and its order there.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

from semmae.core import rng
from semmae.sharding.sources.layout import SPLITS
from semmae.sharding.sources.source_item import Entry

MAX_KEY = 80  # characters, so that every member's name fits a plain tar header


class ShardAssignment(NamedTuple):
    """An entry and its place."""

    source: str  # name of the source
    entry: Entry
    key: str
    shard: int  # number in its split, gaps possible; -1: it stays where it lies

    @property
    def place(self) -> tuple[str, int, str]:
        """What the tasks of one shard share: split and number, or the tar in place (none for what is refused)."""
        if self.shard >= 0:
            return self.entry.split, self.shard, ""
        return "", -1, self.entry.image.file if self.entry.image else ""


def plan(
    found: dict[str, list[Entry]], *, seed: int, samples_per_shard: int, in_place: Collection[str] = ()
) -> list[ShardAssignment]:
    """Every entry with its key and shard, in the order of writing, those of sources `in_place` after the others.

    A split of n entries has round(n / samples_per_shard) shards, at least one. The hash of a key is a point in [0, 1);
    the shards are equal intervals of it, so about equally full; in a shard the order is that of the points.
    """
    entries = [(name, entry) for name, listed in found.items() for entry in listed]
    prefix = {name: f"{name}/" if len(found) > 1 else "" for name in found}
    keys = unique_keys(
        [prefix[name] + entry.path for name, entry in entries],
        [prefix[name] + (entry.path if entry.key is None else entry.key) for name, entry in entries],
    )
    sizes = Counter(entry.split for name, entry in entries if name not in in_place)
    placed, staying = [], []
    for (name, entry), key in zip(entries, keys, strict=True):
        if name in in_place:
            task = ShardAssignment(name, entry, key, -1)
            staying.append(((name, task.place[2], entry.image.offset if entry.image else 0, entry.path), task))
            continue
        point = rng.fold(seed, "shuffle", key)
        shard = point * max(1, round(sizes[entry.split] / samples_per_shard)) >> 63
        placed.append(((SPLITS.index(entry.split), point, key), ShardAssignment(name, entry, key, shard)))
    return [task for _, task in sorted(placed, key=lambda place: place[0])] + [
        task for _, task in sorted(staying, key=lambda place: place[0])
    ]


def shard_names(tasks: list[ShardAssignment], folders: dict[str, str]) -> dict[str, str]:
    """A plain, unique file name for every tar that is indexed in place, from its path in the folder of its source.

    ValueError: two sources index one tar.
    """
    owner: dict[str, str] = {}
    for task in tasks:
        if task.place[2] and owner.setdefault(task.place[2], task.source) != task.source:
            raise ValueError(f"sources {owner[task.place[2]]} and {task.source} both index {task.place[2]} in place")
    prefix = {name: f"{name}/" if len({task.source for task in tasks}) > 1 else "" for name in owner.values()}
    paths = [prefix[name] + os.path.relpath(tar, os.path.abspath(folders[name])) for tar, name in owner.items()]
    return {tar: f"{key}.tar" for tar, key in zip(owner, unique_keys(paths), strict=True)}


def unique_keys(paths: list[str], names: list[str] | None = None) -> list[str]:
    """A key per path: the path without its extension, in letters, digits, - and _ only, so with neither dot nor folder.

    Where that is too long, or the same for several paths (letter case aside), the key ends in a digest of the path.
    `names` says what to make the keys of instead; equal names are told apart by their paths.
    """
    plain = [re.sub(r"[^A-Za-z0-9_-]", "_", re.sub(r"\.[^./]*$", "", name)) for name in names or paths]
    count = Counter(key.lower() for key in plain)
    keys = [
        key
        if count[key.lower()] == 1 and len(key) <= MAX_KEY
        else f"{key[: MAX_KEY - 17]}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
        for key, path in zip(plain, paths, strict=True)
    ]
    if len(set(keys)) < len(keys):  # somebody has named a file by another's digest
        (key, _), *_ = Counter(keys).most_common()
        alike = [path for path, own in zip(paths, keys, strict=True) if own == key]
        raise ValueError(f"{' and '.join(alike)} would both have the key {key}; rename one")
    return keys
