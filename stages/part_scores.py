"""part_scores: score the part maps of a dataset against its ground-truth masks.

    python -m stages.part_scores <dataset>

Reads  data/teacher, data/parts, data/shards/<dataset>: the samples with masks; labels are matched to true labels on
       train, and scored on val
Calls  fit_baselines, fit_references, evaluate_labelers
Writes results/part_scores/<dataset>.json: per level the scores of the parts, of baselines and of references
"""

from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from semmae.core import distributed, stage
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, load_config
from semmae.core.rng import numpy_generator
from semmae.data.dataset import Reader
from semmae.data.loader import batches
from semmae.data.patch_masks import WholeView
from semmae.evaluation import baselines, scores, splits
from semmae.evaluation.center_mask import CenterMask
from semmae.evaluation.part_baselines import fit_baselines
from semmae.evaluation.part_evaluation import PartBatch, PatchLabeler, evaluate_labelers
from semmae.evaluation.part_metrics import LEVELS
from semmae.evaluation.part_references import fit_references
from semmae.evaluation.scores import Scores
from semmae.models import vit
from semmae.models.teacher import Teacher, Tokens, load_teacher
from semmae.parts.part_method import PartMethod
from semmae.parts.part_methods import load_parts

SHARDS, TEACHER, PARTS, RESULTS = (
    Path(p) for p in ("data/shards", "data/teacher", "data/parts", "results/part_scores")
)

Encode = Callable[[UInt8[Tensor, "b 3 H W"]], Tokens]


@dataclass(frozen=True, config=STRICT)
class PartScoresProtocol:
    """Settings that are the same for all datasets."""

    num_images: PositiveInt  # number of images of train for fitting the baselines and references
    baselines: bool  # whether to score baselines and references too, which doubles the run time
    seed: int  # seed of the choice of these images, of the clusterings and of the untrained teacher
    batch_size: PositiveInt
    compute: ComputeConfig


@dataclass(frozen=True, config=STRICT)
class PartScoresOverrides:
    """Settings for one dataset; no setting of the protocol can be overridden."""


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
    teacher, method, untrained = load_networks(protocol, device)
    method.check_dataset(train)
    grid, num_classes = tuple(method.config["grid"]), len(train.mask_names)
    view = WholeView(method.config["img_size"], grid, num_classes=num_classes)
    encode, encode_untrained = make_encoder(teacher, protocol, device), make_encoder(untrained, protocol, device)

    def label_parts(batch: PartBatch) -> np.ndarray:
        with distributed.autocast(device, protocol.compute.precision):  # as in the stage part_maps
            return method.assign(batch.tokens, torch.from_numpy(batch.counts)).argmax(1).cpu().numpy()

    def load(reader: Reader) -> Iterator[PartBatch]:
        indices, workers = np.arange(len(reader)), protocol.compute.workers
        for batch in batches(reader, indices, view, batch_size=protocol.batch_size, workers=workers):
            images = batch["image"].to(device)
            yield PartBatch(images, encode(images), batch["counts"].numpy())

    train_counts = reduce(np.add, (view.counts(train, index) for index in range(len(train))))
    baseline_labelers: dict[str, PatchLabeler] = {}
    references: dict[str, PatchLabeler] = {}
    if protocol.baselines:
        indices = numpy_generator(protocol.seed, "sample").permutation(len(train))[: protocol.num_images]
        sample = list(load(train.select(indices)))
        baseline_labelers = fit_baselines(
            sample, train_counts, num_labels=method.num_labels, grid=grid,
            untrained=encode_untrained, seed=protocol.seed,
        )  # fmt: skip
        references = fit_references(sample, num_classes)
    labelers = {"parts": PatchLabeler(method.num_labels, label_parts)} | baseline_labelers | references
    has_parts = train.mask_kind == "parts"
    metrics = evaluate_labelers(labelers, CenterMask(train_counts), load(train), load(val), parts=has_parts)
    results: dict[str, Scores] = {
        level: Scores(
            metrics["parts"][level],
            baselines={key: metrics[key][level] for key in (*baseline_labelers, "center_mask")},
            references={key: metrics[key][level] for key in references if level in metrics[key]},
        )
        for level in LEVELS
    }
    scores.write(RESULTS / f"{name}.json", results)
    pixel = results["pixel"]
    methods = {"parts": pixel.encoder, **pixel.baselines, **pixel.references}
    ious = ", ".join(f"{key} {values['fg_iou']:.3f}" for key, values in methods.items())
    print(f"{name}: foreground IoU per pixel: {ious}")


def load_networks(protocol: PartScoresProtocol, device: torch.device) -> tuple[Teacher, PartMethod, Teacher]:
    """Load the teacher, the part method and an untrained teacher."""
    teacher = load_teacher(TEACHER)
    method = load_parts(PARTS, teacher=teacher.digest)
    untrained = Teacher(
        baselines.create_untrained(teacher.config, seed=protocol.seed), teacher.config, digest="untrained"
    )
    for network in (teacher, untrained):
        vit.use_fastest_attention(network, device, frozen_grid=method.config["grid"])
    return teacher.to(device), method.to(device), untrained.to(device)


def make_encoder(teacher: Teacher, protocol: PartScoresProtocol, device: torch.device) -> Encode:
    """Return the forward pass of a teacher, in the precision of the protocol."""
    forward = protocol.compute.compile_function(teacher.encode)

    def encode(images: UInt8[Tensor, "b 3 H W"]) -> Tokens:
        with distributed.autocast(device, protocol.compute.precision):
            return forward(images)

    return encode


if __name__ == "__main__":
    stage.main(main)
