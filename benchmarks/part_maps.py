"""Compare the speed of the part_maps stage with that of its teacher alone, and measure the cost of stored maps.

    python -m benchmarks.part_maps [--images 128] [--side 256] [--img-size 224] [--workers 1] [--rounds 5] [--json out]

The images are one shard of drawn JPEGs, the teacher is an untrained ViT-S/16, and the part learner is fitted to its
tokens. Each round times the forward pass of the teacher over ready tensors, then the whole stage: read, decode,
forward, assign, write to the store. The ratio is the median over rounds. Then the benchmark measures the bytes per
image in the files of part maps, and the time per image to join them with the index.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from benchmarks.step import SHAPES, seconds
from semmae.core import distributed, process
from semmae.core.compute import ComputeConfig
from semmae.data.dataset import Reader
from semmae.data.loader import batches
from semmae.data.transforms import FullImage
from semmae.models import teacher, vit
from semmae.parts import part_learner, part_maps, part_store
from semmae.sharding import shard_writer
from semmae.sharding.creatures import draw
from semmae.sharding.sources.sources import Tree
from stages.part_maps import PartMapsConfig, label_shards

NUM_PARTS, BATCH = 12, 32


def prepare(root: Path, count: int, side: int) -> Reader:
    """Write the images to one shard."""
    for number in range(count):
        file = root / f"files/train/{number:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.draw(0, f"train-{number:06d}", side).image).save(file, quality=90)
    tree = Tree(kind="folder", path=str(root / "files"), splits=None, val_fraction=None, labels=False, masks=None)
    shard_writer.write(
        root / "shards", {"drawn": tree}, seed=0, short_side=None, samples_per_shard=count, max_rejects=0.0, workers=0
    )
    return Reader(root / "shards")


def measure(root: Path, args: argparse.Namespace) -> dict[str, float]:
    """Return the rates of the teacher and the stage in images per second, their ratio, and the costs per image."""
    device, reader = distributed.choose_device(args.device), prepare(root, args.images, args.side)
    torch.manual_seed(0)
    shape = {"img_size": args.img_size, **SHAPES["S/16"]}
    teacher.save_teacher(
        root / "teacher", vit.build(shape), shape | {"mean": vit.MEAN, "std": vit.STD, "class_token": True}
    )
    network = teacher.load_teacher(root / "teacher").to(device)
    vit.use_fastest_attention(network, device, frozen_grid=network.grid(args.img_size))
    view, order = FullImage(args.img_size, seed=0, flip=0.0), np.arange(len(reader))
    ready = [b["image"].to(device) for b in batches(reader, order, view, batch_size=BATCH, workers=0)]
    learner = fit_learner(network, ready[0], args.img_size).to(device)
    section = PartMapsConfig("drawn", BATCH, False, ComputeConfig(args.device, args.precision, False, args.workers))
    (shard,) = reader.meta["shards"]
    metadata = {
        "grid": learner.config["grid"], "num_parts": learner.num_parts, "background": learner.background,
        "shard": shard["sha256"], "teacher": network.digest, "parts": "benchmark",
    }  # fmt: skip

    def store(name: str, labels: np.ndarray, _: np.ndarray) -> None:
        path = part_store.store_path("b", metadata["shard"])
        part_maps.write(path, keys=reader.keys, channels={"part_map": labels}, metadata=metadata)

    def run_stage() -> None:
        rows = {shard["file"]: list(range(len(reader)))}
        list(label_shards(section, reader, rows, network.encode, learner, device, store))

    def run_teacher() -> None:
        for images in ready:
            with distributed.autocast(device, args.precision):
                network.encode(images)

    rates: list[tuple[float, float]] = []
    for _ in range(args.rounds + 1):  # the first round is a warm-up
        teacher_rate = len(reader) / seconds(run_teacher, device, 1)
        rates.append((teacher_rate, len(reader) / seconds(run_stage, device, 1)))
    part_store.assemble(root / "maps", digest="b", shards={shard["file"]: shard["sha256"]})
    start = time.perf_counter()
    maps = part_maps.join(root / "maps", reader, teacher=network.digest, parts=None)
    return {
        "teacher": median(teacher_rate for teacher_rate, _ in rates[1:]),
        "cached": median(stage_rate for _, stage_rate in rates[1:]),
        "ratio": median(stage_rate / teacher_rate for teacher_rate, stage_rate in rates[1:]),
        "bytes_per_image": maps.num_bytes / len(reader),
        "join_us_per_image": (time.perf_counter() - start) / len(reader) * 1e6,
    }


def fit_learner(network: teacher.Teacher, images: torch.Tensor, img_size: int) -> part_learner.PartLearner:
    """Return an untrained part learner whose foreground and queries are fitted to the tokens of a batch."""
    config = {
        "method": "learned", "num_parts": NUM_PARTS, "background": True, "img_size": img_size,
        "grid": network.grid(img_size), "embed_dim": network.embed_dim, "teacher": network.digest, "keys": "content",
        "smoothing_steps": 4, "initial_entropy": 0.8,
    }  # fmt: skip
    learner = part_learner.PartLearner(config)
    learner.fit(network.encode(images).patch.float().cpu(), seed=0)
    return learner.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    process.keep_freed_memory()
    root = Path(tempfile.mkdtemp(prefix="semmae-part-maps-"))
    os.environ["SEMMAE_STATE"] = str(root / "state")
    try:
        results = measure(root, args)
    finally:
        shutil.rmtree(root)
    print(f"{args.images} JPEGs of {args.side} pixels, ViT-S/16 at {args.img_size}, {args.workers} workers")
    print(f"  teacher alone  {results['teacher']:9.1f} images/s")
    print(f"  whole stage    {results['cached']:9.1f} images/s, {results['ratio']:.1%}")
    print(f"  files          {results['bytes_per_image']:9.1f} bytes per image")
    print(f"  join           {results['join_us_per_image']:9.1f} microseconds per image")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
