"""part_scores: how well the parts agree with ground-truth masks, beside trivial labellings and ceilings.

    python -m stages.part_scores <dataset>

Reads  data/teacher, data/parts, data/shards/<dataset>: the samples that have masks; train assigns labels, val is scored
Calls  part_baselines.lines, part_baselines.scores
Writes results/part_scores/<dataset>.json: for each level the scores of the parts, of baselines and of references
"""

from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from semmae.core import distributed, stage
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, load_config
from semmae.core.rng import numpy_generator
from semmae.data.dataset import Reader
from semmae.data.loader import batches
from semmae.evaluation import baselines, part_baselines, splits, views
from semmae.evaluation.part_baselines import Batch, CenterMask, Line
from semmae.evaluation.scores import Scores, write
from semmae.models import teacher, vit
from semmae.models.teacher import Teacher, Tokens
from semmae.parts import part_learner
from semmae.parts.part_method import PartMethod

SHARDS, TEACHER, PARTS, RESULTS = (
    Path(p) for p in ("data/shards", "data/teacher", "data/parts", "results/part_scores")
)

REFERENCES = ("readout", "silhouette", "perfect")  # upper bounds that use the true masks


@dataclass(frozen=True, config=STRICT)
class PartScoresProtocol:
    """How every dataset is scored."""

    num_images: PositiveInt  # images of train on whose patches clusters and the read-out are fitted
    baselines: bool  # the lines beside the parts; without them a sweep over part learners is twice as fast
    seed: int  # of that sample, the clusters and the untrained teacher
    batch_size: PositiveInt
    compute: ComputeConfig


@dataclass(frozen=True, config=STRICT)
class PartScoresOverrides:
    """Nothing differs between datasets."""


@dataclass(frozen=True, config=STRICT)
class PartScoresConfig:
    """The section `part_scores` of params.yaml."""

    protocol: PartScoresProtocol
    datasets: dict[str, PartScoresOverrides]


def main() -> None:
    """Score the parts on the dataset named on the command line."""
    section = load_config(PartScoresConfig, "part_scores")
    protocol, (name, _) = section.protocol, stage.dataset_from_command_line(section.datasets, "part_scores")
    train, val = splits.open_masked_splits(SHARDS / name)
    device = distributed.choose_device(protocol.compute.device)
    elder, learner, untrained = networks(protocol, device)
    grid = tuple(learner.config["grid"])
    view = views.WholeView(learner.config["img_size"], grid, num_classes=len(train.mask_names))

    forward = {network: protocol.compute.compile_function(network.encode_with_heads) for network in (elder, untrained)}

    def encode(network: Teacher, images: torch.Tensor) -> tuple[Tokens, torch.Tensor]:
        with distributed.autocast(device, protocol.compute.precision):
            return forward[network](images)

    def labels(batch: Batch) -> np.ndarray:
        with distributed.autocast(device, protocol.compute.precision):  # as the part maps are made
            return learner.assign(batch.tokens).argmax(1).cpu().numpy()

    def seen(reader: Reader) -> Iterator[Batch]:
        everything = np.arange(len(reader))
        for batch in batches(
            reader, everything, view, batch_size=protocol.batch_size, workers=protocol.compute.workers
        ):
            images = batch["image"].to(device)
            yield Batch(images, *encode(elder, images), batch["counts"].numpy())

    train_counts = reduce(np.add, (view.counts(train, index) for index in range(len(train))))
    lines = {}
    if protocol.baselines:
        sample = numpy_generator(protocol.seed, "sample").permutation(len(train))[: protocol.num_images]
        lines = part_baselines.lines(
            list(seen(train.select(sample))), train_counts, num_labels=learner.num_labels, grid=grid,
            untrained=lambda images: encode(untrained, images)[0], seed=protocol.seed,
        )  # fmt: skip
    lines["parts"] = Line(learner.num_labels, labels)
    scores = part_baselines.scores(
        lines, CenterMask(train_counts), seen(train), seen(val), parts=train.mask_kind == "parts"
    )
    groups = by_level(scores)
    write(RESULTS / f"{name}.json", groups)
    pixel = groups["pixel"]
    others = ", ".join(f"{key} {m['fg_iou']:.3f}" for key, m in {**pixel.baselines, **pixel.references}.items())
    print(f"{name}: foreground IoU per pixel: parts {pixel.encoder['fg_iou']:.3f}, {others}")


def by_level(metrics: dict[str, dict[str, dict[str, float]]]) -> dict[str, Scores]:
    """Group the metrics of the parts, of baselines and of references (method -> level -> metrics) by level."""
    groups = {}
    for level, encoder in metrics["parts"].items():
        others = {name: levels[level] for name, levels in metrics.items() if name != "parts" and level in levels}
        references = {name: others.pop(name) for name in REFERENCES if name in others}
        groups[level] = Scores(encoder, others, references)
    return groups


def networks(protocol: PartScoresProtocol, device: torch.device) -> tuple[Teacher, PartMethod, Teacher]:
    """The teacher, the parts that were learned from it, and the teacher before it learned anything."""
    elder = teacher.load_teacher(TEACHER)
    learner = part_learner.load_parts(PARTS, teacher=elder.digest)
    untrained = Teacher(baselines.create_untrained(elder.config, seed=protocol.seed), elder.config, digest="untrained")
    for network in (elder, untrained):
        vit.use_fastest_attention(network, device, frozen_at=learner.config["grid"])
    return elder.to(device), learner.to(device), untrained.to(device)


if __name__ == "__main__":
    stage.main(main)
