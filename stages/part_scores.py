"""part_scores: score the part maps of a dataset against its ground-truth masks.

    python -m stages.part_scores <dataset>

Reads  data/teacher, data/parts, data/shards/<dataset>: the samples with masks; labels are matched to true labels on
       train, and scored on val
Calls  fit_baselines, fit_references, evaluate_labelers, measure_stability
Writes results/part_scores/<dataset>.json: per level the scores of the parts, of baselines and of references
"""

from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Literal

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
from semmae.evaluation.part_evaluation import LevelMetrics, PartBatch, PatchLabeler, average, evaluate_labelers
from semmae.evaluation.part_metrics import LEVELS
from semmae.evaluation.part_references import fit_references
from semmae.evaluation.part_stability import NUM_IMAGES, measure_stability
from semmae.evaluation.scores import Scores
from semmae.models import vit
from semmae.models.teacher import Teacher, Tokens, load_teacher
from semmae.parts.part_method import PartMethod
from semmae.parts.part_methods import load_parts

SHARDS, TEACHER, PARTS, RESULTS = (
    Path(p) for p in ("data/shards", "data/teacher", "data/parts", "results/part_scores")
)

STABILITY_METHODS = ("parts", "centered_kmeans")  # the parts, and their closest baseline

Encode = Callable[[UInt8[Tensor, "b 3 H W"]], Tokens]
Section = Literal["baselines", "references"]


@dataclass(frozen=True, config=STRICT)
class PartScoresProtocol:
    """Settings that are the same for all datasets."""

    num_images: PositiveInt  # number of images of train for fitting the baselines and references
    baselines: bool  # whether to score baselines and references too, which triples the run time
    seed: int  # seed of the choice of these images, of the clusterings and of the untrained teacher
    seeds: PositiveInt  # number of clusterings of each baseline that clusters; scores are their mean
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
    source = BatchSource(protocol, view, device, encode=make_encoder(teacher, protocol, device))

    def label_parts(batch: PartBatch) -> np.ndarray:
        with distributed.autocast(device, protocol.compute.precision):  # as in the stage part_maps
            return method.assign(batch.tokens, torch.from_numpy(batch.counts)).argmax(1).cpu().numpy()

    train_counts = reduce(np.add, (view.counts(train, index) for index in range(len(train))))
    center_mask = CenterMask(train_counts)
    fitted: dict[Section, dict[str, list[PatchLabeler]]] = {"baselines": {}, "references": {}}
    if protocol.baselines:
        source.encode_untrained = make_encoder(untrained, protocol, device)
        indices = numpy_generator(protocol.seed, "sample").permutation(len(train))[: protocol.num_images]
        sample = list(source.load(train.select(indices)))
        fitted["baselines"] = fit_baselines(
            sample, train_counts, num_labels=method.num_labels, grid=grid, seed=protocol.seed, seeds=protocol.seeds
        )
        fitted["references"] = {key: [labeler] for key, labeler in fit_references(sample, num_classes).items()}
    parts = PatchLabeler(method.num_labels, label_parts, background=method.background)
    evaluated = evaluate_labelers(
        {"parts": [parts]} | fitted["baselines"] | fitted["references"], center_mask, source.load(train),
        source.load(val), num_classes=num_classes, grid=grid, parts=train.mask_kind == "parts",
    )  # fmt: skip
    averages = {key: average([labeler.compute() for labeler in clusterings]) for key, clusterings in evaluated.items()}
    if method.config["method"] != "truth":  # an image that is moved has no true labels
        compared = {key: evaluated[key][0] for key in STABILITY_METHODS if key in evaluated}
        for key, stability in measure_stability(compared, source.load_few(val), source.with_images, grid=grid).items():
            averages[key][0]["patch"].update(stability)
    write_scores(name, averages, center_mask, fitted)


class BatchSource:
    """Load batches of whole images, and encode them.

    Args:
        protocol: Batch size, precision and number of workers.
        view: Loads an image and the counts of its mask.
        device: The device of the teacher.
        encode: The teacher's `encode`.
    """

    def __init__(self, protocol: PartScoresProtocol, view: WholeView, device: torch.device, *, encode: Encode) -> None:
        self.protocol, self.view, self.device, self.encode = protocol, view, device, encode
        self.encode_untrained: Encode | None = None

    def load(self, reader: Reader, *, untrained: bool = True) -> Iterator[PartBatch]:
        """Yield the batches of a dataset; with `untrained`, also encode them by `encode_untrained` if it is set."""
        indices, workers = np.arange(len(reader)), self.protocol.compute.workers
        for batch in batches(reader, indices, self.view, batch_size=self.protocol.batch_size, workers=workers):
            images = batch["image"].to(self.device)
            patch = self.encode_untrained(images).patch if untrained and self.encode_untrained else None
            yield PartBatch(images, self.encode(images), batch["counts"].numpy(), patch)

    def load_few(self, reader: Reader) -> Iterator[PartBatch]:
        """Yield batches of at most `NUM_IMAGES` images, which are spread evenly over a dataset."""
        indices = np.linspace(0, len(reader), min(len(reader), NUM_IMAGES), endpoint=False).astype(int)
        yield from self.load(reader.select(indices), untrained=False)

    def with_images(self, batch: PartBatch, images: UInt8[Tensor, "b 3 s s"]) -> PartBatch:
        """Return a batch with other images and their tokens."""
        return batch._replace(images=images, tokens=self.encode(images))


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


def write_scores(
    dataset: str,
    averages: dict[str, tuple[LevelMetrics, LevelMetrics]],
    center_mask: CenterMask,
    fitted: dict[Section, dict[str, list[PatchLabeler]]],
) -> None:
    """Write the scores of a dataset, and print the foreground IoU of each method.

    Args:
        dataset: The name of the dataset.
        averages: The means and the deviations of `average` by method; the parts are `parts`.
        center_mask: The center mask, after its last image.
        fitted: The methods of each section.
    """
    results: dict[str, Scores] = {}
    for level in LEVELS:
        means = {key: metrics[level] for key, (metrics, _) in averages.items()}
        spreads = {key: metrics[level] for key, (_, metrics) in averages.items() if metrics[level]}
        results[level] = Scores(
            means["parts"],
            baselines={key: means[key] for key in fitted["baselines"]} | {"center_mask": center_mask.compute()[level]},
            deviations=spreads,
            references={key: means[key] for key in fitted["references"]},
        )
    scores.write(RESULTS / f"{dataset}.json", results)
    pixel = results["pixel"]
    methods = {"parts": pixel.encoder, **pixel.baselines, **pixel.references}
    ious = ", ".join(f"{key} {values['fg_iou']:.3f}" for key, values in methods.items())
    print(f"{dataset}: foreground IoU per pixel: {ious}")


if __name__ == "__main__":
    stage.main(main)
