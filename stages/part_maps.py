"""part_maps: cache the label of every patch of every image, in one Parquet file per shard.

    python -m stages.part_maps

Reads  data/shards/<part_maps.dataset> (all splits), data/teacher, data/parts
Calls  Teacher.encode and PartMethod.assign on whole images, for the shards whose part maps are not in the store
Writes data/part_maps/<dataset>/<shard stem>.parquet, results/part_maps/metrics.json
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
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
from semmae.models import vit
from semmae.models.teacher import Tokens, load_teacher
from semmae.parts import part_maps, part_methods, part_store
from semmae.parts.part_method import PartMethod

OUT, RESULTS, SHARDS = Path("data/part_maps"), Path("results/part_maps"), Path("data/shards")
TEACHER, PARTS = Path("data/teacher"), Path("data/parts")

Labels = UInt8[np.ndarray, "b n"]
Attention = Float[np.ndarray, "b n"]


@dataclass(frozen=True, config=STRICT)
class PartMapsConfig:
    """The section `part_maps` of params.yaml."""

    dataset: str
    batch_size: PositiveInt
    attention: bool  # whether to store the attention of the class token, which the mask strategy `attention` needs
    compute: ComputeConfig


def main() -> None:
    """Label the shards that the store lacks, then assemble the output from the store."""
    section = load_config(PartMapsConfig, "part_maps")
    verify_shards(SHARDS / section.dataset)
    reader, teacher = Reader(SHARDS / section.dataset), load_teacher(TEACHER)
    method = part_methods.load_parts(PARTS, teacher=teacher.digest)
    method.check_dataset(reader)
    device = distributed.choose_device(section.compute.device)
    teacher, method = teacher.to(device), method.to(device)
    vit.use_fastest_attention(teacher, device, frozen_grid=method.config["grid"])
    encode = section.compute.compile_function(teacher.encode)
    params = {"attention": section.attention, "precision": section.compute.precision}
    digest = part_store.store_digest(teacher=teacher.digest, parts=method.digest, params=params)
    shards = {shard["file"]: shard["sha256"] for shard in reader.meta["shards"]}
    rows: dict[str, list[int]] = {name: [] for name in shards}
    for row, name in enumerate(reader.shards):
        rows[name].append(row)
    keys = {name: [reader.keys[row] for row in rows[name]] for name in shards}
    origin = {
        "grid": method.config["grid"], "num_parts": method.num_parts, "background": method.background,
        "teacher": teacher.digest, "parts": method.digest,
    }  # fmt: skip

    def store(name: str, labels: Labels, attention: Attention) -> None:
        channels = {"part_map": labels}
        if section.attention:
            channels["attention"] = part_maps.quantize_attention(attention)
        path = part_store.store_path(digest, shards[name])
        part_maps.write(path, keys=keys[name], channels=channels, metadata=origin | {"shard": shards[name]})

    with exclusive_lock("output", str((OUT / section.dataset).absolute())):
        missing = [name for name in shards if not part_store.is_stored(digest, shards[name], keys=keys[name])]
        print(f"part_maps: {len(missing)} of {len(shards)} shards to compute, the others are in the store")
        labeled = label_shards(section, reader, {name: rows[name] for name in missing}, encode, method, device, store)
        for _ in track(labeled, "part_maps", len(missing), console=Console(stderr=True), disable=not missing):
            pass
        part_store.assemble(OUT / section.dataset, digest=digest, shards=shards)
    maps = part_maps.join(OUT / section.dataset, reader, teacher=teacher.digest, parts=method.digest)
    write_json(RESULTS / "metrics.json", {"part_maps": part_maps.summarize(maps)})


def label_shards(
    section: PartMapsConfig,
    reader: Reader,
    shards: dict[str, list[int]],
    encode: Callable[[torch.Tensor], Tokens],
    method: PartMethod,
    device: torch.device,
    store: Callable[[str, Labels, Attention], None],
) -> Iterator[str]:
    """Label the shards one by one. A thread stores each shard while the next one is computed.

    Args:
        section: Batch size, precision and number of workers.
        reader: The dataset.
        shards: For each shard, the rows of its samples in `reader`.
        encode: The teacher's `encode`.
        method: The part method.
        device: The device of the teacher and of the part method.
        store: A function that is called with the name, the labels and the attention of each shard.

    Yields:
        The name of each shard that was computed.
    """
    batches = groupby(label_batches(section, reader, shards, encode, method, device), itemgetter(0))
    with ThreadPoolExecutor(1) as writer:
        storing = None
        for name, pieces in batches:
            _, labels, attention = zip(*pieces, strict=True)
            if storing:
                storing.result()
            storing = writer.submit(store, name, np.concatenate(labels), np.concatenate(attention))
            yield name
        if storing:
            storing.result()


def label_batches(
    section: PartMapsConfig,
    reader: Reader,
    shards: dict[str, list[int]],
    encode: Callable[[torch.Tensor], Tokens],
    method: PartMethod,
    device: torch.device,
) -> Iterator[tuple[str, Labels, Attention]]:
    """Label the samples of `shards` batch by batch; the arguments are those of `label_shards`.

    A batch holds images of one shard only, so the part maps of a shard depend on no other shard. This function reads
    the results of a batch only after it has launched the next batch, so that the device does not wait.

    Yields:
        The name of the shard, the labels, and the class token's attention.
    """
    size, view = section.batch_size, method.view(reader)
    groups = [(name, np.array(rows[i : i + size])) for name, rows in shards.items() for i in range(0, len(rows), size)]
    loaded = load_groups(reader, [rows for _, rows in groups], view, workers=section.compute.workers)
    launched: deque[tuple[str, PendingCopy, PendingCopy]] = deque()
    for (name, _), batch in zip(groups, loaded, strict=True):
        with distributed.autocast(device, section.compute.precision):
            tokens = encode(to_device(device, batch["image"]))
            labels = method.assign(tokens, batch.get("counts")).argmax(1).to(torch.uint8)
        launched.append((name, PendingCopy(labels), PendingCopy(tokens.attention)))
        if len(launched) > 1:
            yield _read(*launched.popleft())
    for last in launched:
        yield _read(*last)


def _read(name: str, labels: PendingCopy, attention: PendingCopy) -> tuple[str, Labels, Attention]:
    """Wait for both copies, and move the arrays out of pinned memory, which is too scarce for a whole shard."""
    return name, labels.read().numpy().copy(), attention.read().numpy().copy()


if __name__ == "__main__":
    stage.main(main)
