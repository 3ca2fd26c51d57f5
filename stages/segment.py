"""segment: semantic segmentation with a frozen encoder (linear head, nearest patches) and a fine-tuned one (UPerNet).

    python -m stages.segment <dataset>

The baselines are a linear head on an untrained encoder, one on the teacher, and two that ignore the image.

Reads  data/pretrain (encoder), data/teacher, data/shards/<dataset>: the samples that have masks; heads are trained on
       train and scored on val
Calls  head_scores: linear.fit_linear, knn.fit_knn, upernet.finetune_upernet; scores.write, curve_files.write
Writes results/segment/<dataset>.json; curves/<dataset>/: the loss per epoch; examples/<dataset>/<head>/<key>.png:
       predicted masks of some samples of val
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass as pydantic_dataclass

from semmae.core import distributed, stage
from semmae.core.atomic_files import atomic_write, read_json
from semmae.core.config import STRICT, load_config, with_overrides
from semmae.core.digests import file_digest
from semmae.core.rng import numpy_generator
from semmae.data import decoding
from semmae.data.dataset import Reader, verify_shards
from semmae.evaluation import curve_files, scores
from semmae.evaluation.scores import Metrics
from semmae.evaluation.segmentation import heads, sliding_window, splits, transforms
from semmae.evaluation.segmentation.head_scores import (
    HEADS,
    HeadName,
    HeadResult,
    SegmentationConfig,
    SegmentationTask,
)
from semmae.evaluation.segmentation.image_free_baselines import score_image_free_baselines
from semmae.evaluation.segmentation.sliding_window import SlidingWindowOptions
from semmae.runs.run import Run

RESULTS, SHARDS = Path("results/segment"), Path("data/shards")
PRETRAIN, TEACHER = Path("data/pretrain"), Path("data/teacher")

HeadNames = Annotated[list[HeadName], Field(min_length=1)]


@pydantic_dataclass(frozen=True, config=STRICT)
class SegmentProtocol(SegmentationConfig):
    """Settings that are the same for all datasets."""

    heads: HeadNames
    examples: NonNegativeInt
    checkpoint_minutes: NonNegativeFloat


@pydantic_dataclass(frozen=True, config=STRICT)
class SegmentOverrides:
    """Settings for one dataset. A value that is null or absent is taken from the protocol."""

    heads: HeadNames | None = None
    short_side: PositiveInt | None = None
    stride: PositiveInt | None = None


@pydantic_dataclass(frozen=True, config=STRICT)
class SegmentConfig:
    """The section `segment` of params.yaml."""

    protocol: SegmentProtocol
    datasets: dict[str, SegmentOverrides]


def main() -> None:
    """Score the encoder on the dataset named on the command line."""
    section = load_config(SegmentConfig, "segment")
    name, overrides = stage.dataset_from_command_line(section.datasets, "segment")
    protocol = with_overrides(section.protocol, overrides)
    train, counts = splits.open_masked_split(SHARDS / name, "train")
    val, val_counts = splits.open_masked_split(SHARDS / name, "val")
    in_train, in_val = counts.any(0), val_counts.any(0)
    if missing := [val.mask_names[label] for label in np.flatnonzero(in_val & ~in_train)]:
        raise ValueError(
            f"{SHARDS / name}: the masks of val have classes that the masks of train lack ({', '.join(missing[:5])}), "
            "and no head can learn them. Add images with these classes to the train split: change the sources of "
            f"shards.datasets.{name}"
        )
    verify_shards(SHARDS / name)
    with distributed.world(protocol.compute.device) as world, ExitStack() as runs:
        task = prepare_task(protocol, train, val, world, partial(start_run, name, protocol, world, runs))
        results = {head: HEADS[head](task) for head in dict.fromkeys(protocol.heads)}
        if world.is_main:
            write_examples(RESULTS / "examples" / name, protocol, task, results)
            image_free = score_image_free_baselines(counts, val, seed=protocol.seed) if protocol.baselines else {}
            write_results(name, results, image_free)


def prepare_task(
    protocol: SegmentProtocol,
    train: Reader,
    val: Reader,
    world: distributed.World,
    start_run: Callable[[HeadName, str, str], Run],
) -> SegmentationTask:
    """Draw the training images, and compute the size of windows and crops."""
    side = protocol.crop or read_json(PRETRAIN / "encoder.json")["img_size"]
    grid = sliding_window.WindowGrid(protocol.short_side, side, protocol.stride)
    order = numpy_generator(protocol.seed, "sample").permutation(len(train))
    train = train.select(np.sort(order[: protocol.num_images])).with_shuffle_shards(protocol.shuffle_shards)
    return SegmentationTask(
        protocol,
        PRETRAIN,
        TEACHER,
        heads.hold_out(train, share=protocol.holdout, seed=protocol.seed),
        val,
        transforms.TrainCrop(protocol.seed, protocol.training_crops, protocol.short_side, side),
        SlidingWindowOptions(grid, protocol.batch_size, protocol.compute.workers, world),
        start_run,
    )


def start_run(
    name: str,
    protocol: SegmentProtocol,
    world: distributed.World,
    runs: ExitStack,
    head: HeadName,
    network_name: str,
    digest: str,
) -> Run:
    """Start the run of a head; `runs` keeps its checkpoints until the stage has succeeded."""
    run = Run(
        f"segment.{head}",
        world,
        out=RESULTS / "examples" / name / head / network_name,
        params=protocol,
        inputs=[file_digest(SHARDS / name / "shards.json"), network_name, digest],
        checkpoint_minutes=protocol.checkpoint_minutes,
    )
    return runs.enter_context(run)


def write_results(name: str, results: dict[HeadName, HeadResult], image_free: dict[str, Metrics]) -> None:
    """Write scores and curves; the baselines `image_free` are added to every head."""
    groups: dict[str, scores.Scores] = {
        head: replace(result.scores, baselines={**result.scores.baselines, **image_free})
        for head, result in results.items()
    }
    curve_files.write(
        RESULTS / "curves" / name, {k: v for result in results.values() for k, v in result.curves.items()}
    )
    scores.write(RESULTS / f"{name}.json", groups)
    miou: dict[str, float] = {head: group.encoder["miou"] for head, group in groups.items()}
    miou |= {baseline: baseline_metrics["miou"] for baseline, baseline_metrics in image_free.items()}
    print(f"{name}: segmentation mIoU of {', '.join(f'{key} {value:.3f}' for key, value in miou.items())}")


def write_examples(
    folder: Path, protocol: SegmentProtocol, task: SegmentationTask, results: dict[HeadName, HeadResult]
) -> None:
    """Write the predicted masks of some samples of val by each head, as 8-bit PNG files of class indices."""
    order = numpy_generator(protocol.seed, "examples").permutation(len(task.val))
    subset = task.val.select(np.sort(order[: protocol.examples]))
    single_process = distributed.World(0, 1, task.options.world.device)
    with atomic_write(folder) as temporary:
        for head, result in results.items():
            (temporary / head).mkdir(parents=True)
            options = replace(result.options, world=single_process)
            for index, labels, _ in sliding_window.predict_labels(result.predict, subset, options):
                pixels = labels[0].to(torch.uint8).cpu().numpy()
                (temporary / head / f"{subset.keys[index]}.png").write_bytes(decoding.encode_png(pixels))


if __name__ == "__main__":
    stage.main(main)
