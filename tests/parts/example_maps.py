"""A small dataset of flat colors with part maps that its keys determine, for the tests of part maps."""

from pathlib import Path

import numpy as np

from semmae.data.dataset import Reader
from semmae.parts import part_maps, part_store
from semmae.sharding import shard_writer
from semmae.sharding.sources.sources import Tree

GRID, PARTS = (3, 4), 5
MADE_BY = {"teacher": "the teacher", "parts": "the parts"}


def dataset(images: Path) -> Reader:
    """Write the folder as a dataset of four shards."""
    out = images.with_name("dataset")
    tree = Tree(kind="folder", path=str(images), splits=None, val_fraction=None, labels=False, masks=None)
    shard_writer.write(out, {"a": tree}, seed=0, short_side=None, samples_per_shard=6, max_rejects=0.0, workers=0)
    return Reader(out, "train")


def labels(keys: list[str]) -> np.ndarray:
    """Return one part map per key that the key determines, background included."""
    return np.stack([np.frombuffer((key * 12).encode()[:12], np.uint8) % (PARTS + 1) for key in keys])


def metadata(**changes) -> dict:
    return {"grid": list(GRID), "num_parts": PARTS, "background": PARTS, "shard": "the shard", **MADE_BY, **changes}


def write(path: Path, keys: list[str], *, attention: bool = True, **changes) -> None:
    channels = {"part_map": labels(keys)} | ({"attention": labels(keys) * 2} if attention else {})
    part_maps.write(path, keys=keys, channels=channels, metadata=metadata(**changes))


def fill(reader: Reader, out: Path, **changes) -> list[str]:
    """Compute the maps that the store lacks and assemble the output, as the stage does; return the computed shards."""
    computed, digest = [], part_store.store_digest(**MADE_BY, params={})
    for entry in reader.meta["shards"]:
        keys = [key for key, shard in zip(reader.keys, reader.shards, strict=True) if shard == entry["file"]]
        if not part_store.is_stored(digest, entry["sha256"], keys=keys):
            write(part_store.store_path(digest, entry["sha256"]), keys, shard=entry["sha256"], **changes)
            computed.append(entry["file"])
    part_store.assemble(out, digest=digest, shards={entry["file"]: entry["sha256"] for entry in reader.meta["shards"]})
    return computed
