"""part_maps: the label of every patch of every image, cached, one Parquet file per shard.

    python -m stages.part_maps

Reads  data/shards/<part_maps.dataset> (all splits), data/teacher, data/parts
Calls  teacher.encode and parts.assign on whole images, for the shards that the store does not know yet
Writes data/part_maps/<dataset>/<shard stem>.parquet; results/part_maps/metrics.json: a summary
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from rich.console import Console
from rich.progress import track

from semmae import artifact, dist, params, part_maps, parts, run, stage, teacher, vit
from semmae.params import STRICT
from semmae.reader import Reader, batches, verify_shards
from semmae.views import Whole

OUT, RESULTS, SHARDS = Path("data/part_maps"), Path("results/part_maps"), Path("data/shards")
TEACHER, PARTS = Path("data/teacher"), Path("data/parts")


@dataclass(frozen=True, config=STRICT)
class PartMaps:
    """The section `part_maps` of params.yaml."""

    dataset: str
    batch_size: PositiveInt
    attention: bool
    compute: run.Inference


def main() -> None:
    """Map the shards that are new under this teacher and these parts; take the others from the store."""
    section = params.load(PartMaps, "part_maps")
    shards = SHARDS / section.dataset
    verify_shards(shards)
    reader, elder = Reader(shards), teacher.load(TEACHER)
    learner = parts.load(PARTS, teacher=elder.digest)
    device = dist.choose_device(section.compute.device)
    elder, learner = elder.to(device), learner.to(device)
    vit.use_fastest_attention(elder, device, frozen_at=learner.config["grid"])
    encode = section.compute.compiled(elder.encode)
    made_with = {"attention": section.attention, "precision": section.compute.precision}
    digest = part_maps.store_digest(teacher=elder.digest, parts=learner.digest, params=made_with)
    digests = {shard["file"]: shard["sha256"] for shard in reader.meta["shards"]}
    rows: dict[str, list[int]] = {name: [] for name in digests}
    for row, name in enumerate(reader.shards):
        rows[name].append(row)
    with artifact.lock("output", str((OUT / section.dataset).absolute())):
        missing = [
            name for name in digests
            if not part_maps.stored(digest, digests[name], keys=[reader.keys[row] for row in rows[name]])
        ]  # fmt: skip
        print(f"part_maps: {len(missing)} of {len(digests)} shards to compute, the others are in the store")
        for name in track(missing, "part_maps", console=Console(stderr=True), disable=not missing):
            metadata = {
                "grid": learner.config["grid"], "num_parts": learner.num_parts, "background": learner.background,
                "shard": digests[name], "teacher": elder.digest, "parts": learner.digest,
            }  # fmt: skip
            write_shard(section, reader.select(np.array(rows[name])), encode, learner, device, digest, metadata)
        part_maps.assemble(OUT / section.dataset, digest=digest, shards=digests)
    maps = part_maps.join(OUT / section.dataset, reader, teacher=elder.digest, parts=learner.digest)
    artifact.write_json(RESULTS / "metrics.json", {"part_maps": part_maps.summary(maps)})


def write_shard(
    section: PartMaps, reader: Reader, encode: Callable[[torch.Tensor], teacher.Tokens], learner: parts.Parts,
    device: torch.device, digest: str, metadata: dict,
) -> None:  # fmt: skip
    """Encode, assign and store one shard."""
    labels, attention = [], []
    view = Whole(learner.config["img_size"], seed=0, flip=0.0)
    for batch in batches(
        reader, np.arange(len(reader)), view, batch_size=section.batch_size, workers=section.compute.workers
    ):
        with dist.autocast(device, section.compute.precision):
            tokens = encode(batch["image"].to(device))
            shares = learner.assign(tokens)
        labels.append(shares.argmax(1).to(torch.uint8).cpu().numpy())
        attention.append(tokens.attention.cpu().numpy())
    part_maps.write(
        part_maps.store_path(digest, metadata["shard"]), keys=reader.keys, part_maps=np.concatenate(labels),
        attention=part_maps.quantise_attention(np.concatenate(attention)) if section.attention else None,
        metadata=metadata,
    )  # fmt: skip


if __name__ == "__main__":
    stage.main(main)
