"""Compare the speed of pretraining from shards with its speed without an input pipeline.

    python -m benchmarks.end_to_end [--model S/16] [--images 512] [--side 256] [--batch 32] [--workers 1]
                                    [--precision bf16] [--compile [reduce-overhead]] [--rounds 3] [--json out.json]

Each round runs the training loop of the pretrain stage twice, with semantic masks. The first run reads a shard of
JPEGs, which loader processes decode and crop. The second run repeats one batch that stays on the device. A rate is the
images per second over the second half of the steps of an epoch. The table gives the medians over the rounds, and the
median ratio of the two rates. Under torchrun each process takes its share of `--batch`, and the first process prints
the table.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.part_maps import prepare
from benchmarks.step import DECODER, IMAGE, RATIO, SHAPES
from semmae.core import async_copy, distributed, process
from semmae.core.compute import ComputeConfig
from semmae.data.dataset import Reader
from semmae.data.transforms import Crop
from semmae.models import vit
from semmae.parts.part_maps import PartMaps
from semmae.runs.run import Run
from semmae.runs.steps import Step
from semmae.training import mae_loop

PARTS = 7
CURRICULUM = mae_loop.CurriculumConfig(start=0.0, end=1.0, power=2.0)


class TimedRun(Run):
    """A run that records when the host launched each step. A GPU is at most one step behind the host."""

    def steps(self, *args: Any, **keywords: Any) -> Iterator[Step]:
        self.launch_times: list[float] = []
        yield from super().steps(*args, **keywords)

    def record(self, **values: Any) -> None:
        super().record(**values)
        self.launch_times.append(time.perf_counter())

    @property
    def rate(self) -> float:
        """Steps per second over the second half of the steps."""
        times = self.launch_times[len(self.launch_times) // 2 :]
        return (len(times) - 1) / (times[-1] - times[0])


class ReadyBatchRun(TimedRun):
    """A timed run that repeats one batch, which stays on the device."""

    def steps(self, reader: Reader, load: Callable[..., Any], **keywords: Any) -> Iterator[Step]:
        self.launch_times = []
        steps = super().steps(reader, load, **keywords | {"workers": 0})
        first = next(steps)
        steps.close()
        batch = first.batch | {"image": async_copy.to_device(self.world.device, first.batch["image"])}
        for number in range(first.steps):
            yield (step := Step(number, first.steps, first.per_epoch, number // first.per_epoch, batch, False))
            self.step_log.enqueue(step, stop=False, checkpoint_due=False)
            self.step_log.read_completed(leave=self.step_log.delay)


def measure(root: Path, args: argparse.Namespace, world: distributed.World) -> dict[str, float]:
    """Return the images per second of all processes from shards and from a ready batch, and their ratio."""
    reader, grid = Reader(root / "shards"), IMAGE // SHAPES[args.model]["patch_size"]
    part_map = (np.arange(grid**2) * PARTS // grid**2).astype(np.uint8)
    maps = PartMaps(reader.keys, {"part_map": np.tile(part_map, (len(reader), 1))}, {"grid": (grid, grid)}, 0)
    recipe = mae_loop.MAERecipe(
        epochs=1,
        steps=None,
        batch_size=args.batch,
        shuffle_shards=None,
        base_lr=1.5e-4,
        min_lr=0.0,
        warmup_epochs=0,
        weight_decay=0.05,
        betas=(0.9, 0.95),
        clip_grad=None,
        max_skipped_steps=0,
        norm_pix_loss=True,
        decode_fraction=1.0,
        resolution=None,
        decoder=mae_loop.DecoderConfig(**DECODER),
        crop=Crop(scale=(0.2, 1.0), ratio=(0.75, 1.3333), flip=0.5),
    )
    compute = ComputeConfig(args.device, args.precision, args.compile, args.workers)
    masking = mae_loop.MaskingConfig(strategy="semantic", mask_ratio=RATIO, curriculum=CURRICULUM)

    def rate(kind: type[TimedRun]) -> float:
        torch.manual_seed(0)
        encoder = vit.build({"img_size": IMAGE, **SHAPES[args.model]})
        with kind("benchmark", world, out=root / "out", params=recipe, inputs=[], checkpoint_minutes=1e6) as run:
            mae_loop.pretrain(
                recipe, masking, encoder, reader=reader, maps=maps, seed=0, compute=compute, world=world, run=run,
                online_eval=lambda *_: {},
            )  # fmt: skip
        return run.rate * args.batch

    rates = [(rate(TimedRun), rate(ReadyBatchRun)) for _ in range(args.rounds)]
    return {
        "shards": median(shards for shards, _ in rates),
        "ready": median(ready for _, ready in rates),
        "ratio": median(shards / ready for shards, ready in rates),
    }


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="S/16", choices=SHAPES)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--compile", nargs="?", const=True, default=False, choices=["reduce-overhead"])
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Draw the images, measure, print the table."""
    args = parse_arguments()
    process.keep_freed_memory()
    group_id = os.environ.get("MASTER_PORT", os.getpid())  # equal in all processes of a torchrun
    root = Path(tempfile.gettempdir(), f"semmae-end-to-end-{group_id}")
    os.environ["SEMMAE_STATE"] = str(root / "state")
    with distributed.world(args.device) as world:
        if world.is_main:
            prepare(root, args.images, args.side)
        distributed.barrier(world)
        rates = measure(root, args, world)
    if world.is_main:
        print(
            f"ViT-{args.model}, {world.size} processes, batch {args.batch}, {args.workers} loaders each, {world.device}"
        )
        print(f"  from shards    {rates['shards']:9.1f} images/s, {rates['ratio']:.1%} of the rate with a ready batch")
        print(f"  a ready batch  {rates['ready']:9.1f} images/s")
        if args.json:
            args.json.write_text(json.dumps(rates, indent=2) + "\n")
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
