"""part_maps: the label of every patch of every image, cached, one Parquet file per shard.

    python -m stages.part_maps

Reads  data/shards/<part_maps.dataset> (all splits), data/teacher, data/parts
Calls  teacher.encode and parts.assign on whole images, for the shards that the store does not know yet
Writes data/part_maps/<dataset>/<shard stem>.parquet; results/part_maps/metrics.json: a summary
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from rich.console import Console
from rich.progress import track

from semmae.core import distributed, stage
from semmae.core.async_copy import PendingCopy, to_device
from semmae.core.atomic_files import write_json
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, load_config
from semmae.core.locks import exclusive_lock
from semmae.data.dataset import Reader, verify_shards
from semmae.data.loader import load_groups
from semmae.data.transforms import Whole
from semmae.models import teacher, vit
from semmae.parts import part_learner, part_maps

OUT, RESULTS, SHARDS = Path("data/part_maps"), Path("results/part_maps"), Path("data/shards")
TEACHER, PARTS = Path("data/teacher"), Path("data/parts")


@dataclass(frozen=True, config=STRICT)
class PartMapsConfig:
    """The section `part_maps` of params.yaml."""

    dataset: str
    batch_size: PositiveInt
    attention: bool
    compute: ComputeConfig


def main() -> None:
    """Map the shards that are new under this teacher and these parts; take the others from the store."""
    section = load_config(PartMapsConfig, "part_maps")
    shards = SHARDS / section.dataset
    verify_shards(shards)
    reader, elder = Reader(shards), teacher.load_teacher(TEACHER)
    learner = part_learner.load(PARTS, teacher=elder.digest)
    device = distributed.choose_device(section.compute.device)
    elder, learner = elder.to(device), learner.to(device)
    vit.use_fastest_attention(elder, device, frozen_at=learner.config["grid"])
    encode = section.compute.compile_function(elder.encode)
    made_with = {"attention": section.attention, "precision": section.compute.precision}
    digest = part_maps.store_digest(teacher=elder.digest, parts=learner.digest, params=made_with)
    digests = {shard["file"]: shard["sha256"] for shard in reader.meta["shards"]}
    rows: dict[str, list[int]] = {name: [] for name in digests}
    for row, name in enumerate(reader.shards):
        rows[name].append(row)
    made = {
        "grid": learner.config["grid"], "num_parts": learner.num_parts, "background": learner.background,
        "teacher": elder.digest, "parts": learner.digest,
    }  # fmt: skip

    def store(name: str, labels: np.ndarray, attention: np.ndarray) -> None:
        part_maps.write(
            part_maps.store_path(digest, digests[name]), keys=[reader.keys[row] for row in rows[name]],
            part_maps=labels, attention=part_maps.quantize_attention(attention) if section.attention else None,
            metadata=made | {"shard": digests[name]},
        )  # fmt: skip

    with exclusive_lock("output", str((OUT / section.dataset).absolute())):
        missing = [
            name for name in digests
            if not part_maps.stored(digest, digests[name], keys=[reader.keys[row] for row in rows[name]])
        ]  # fmt: skip
        print(f"part_maps: {len(missing)} of {len(digests)} shards to compute, the others are in the store")
        cached = cache(section, reader, {name: rows[name] for name in missing}, encode, learner, device, store)
        list(track(cached, "part_maps", len(missing), console=Console(stderr=True), disable=not missing))
        part_maps.assemble(OUT / section.dataset, digest=digest, shards=digests)
    maps = part_maps.join(OUT / section.dataset, reader, teacher=elder.digest, parts=learner.digest)
    write_json(RESULTS / "metrics.json", {"part_maps": part_maps.summary(maps)})


def cache(
    section: PartMapsConfig, reader: Reader, shards: dict[str, list[int]], encode: Callable[[torch.Tensor], teacher.Tokens],
    learner: part_learner.PartMethod, device: torch.device, store: Callable[[str, np.ndarray, np.ndarray], None],
) -> Iterator[str]:  # fmt: skip
    """Map one shard after the other and store it while the next one is at work; their names."""
    found = groupby(mapped(section, reader, shards, encode, learner, device), itemgetter(0))
    with ThreadPoolExecutor(1) as beside:
        storing = None
        for name, pieces in found:
            _, labels, attention = zip(*pieces, strict=True)
            if storing:
                storing.result()
            storing = beside.submit(store, name, np.concatenate(labels), np.concatenate(attention))
            yield name
        if storing:
            storing.result()


def mapped(
    section: PartMapsConfig, reader: Reader, shards: dict[str, list[int]], encode: Callable[[torch.Tensor], teacher.Tokens],
    learner: part_learner.PartMethod, device: torch.device,
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:  # fmt: skip
    """Batch by batch the shard, the labels and the class token's attention, read off the device when the next batch has
    been told to it. No batch has images of two shards: what a shard's maps are depends on nothing else.
    """
    size, view = section.batch_size, Whole(learner.config["img_size"], seed=0, flip=0.0)
    groups = [(name, np.array(ids[i : i + size])) for name, ids in shards.items() for i in range(0, len(ids), size)]
    loaded = load_groups(reader, [ids for _, ids in groups], view, workers=section.compute.workers)
    told: deque[tuple[str, PendingCopy, PendingCopy]] = deque()
    for (name, _), batch in zip(groups, loaded, strict=True):
        with distributed.autocast(device, section.compute.precision):
            tokens = encode(to_device(device, batch["image"]))
            labels = learner.assign(tokens).argmax(1).to(torch.uint8)
        told.append((name, PendingCopy(labels), PendingCopy(tokens.attention)))
        if len(told) > 1:
            yield _read(*told.popleft())
    for last in told:
        yield _read(*last)


def _read(name: str, labels: PendingCopy, attention: PendingCopy) -> tuple[str, np.ndarray, np.ndarray]:
    """Copies: what has arrived lies in pinned memory, which a whole shard should not hold."""
    return name, labels.read().numpy().copy(), attention.read().numpy().copy()


if __name__ == "__main__":
    stage.main(main)
