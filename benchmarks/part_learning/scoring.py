"""Score the methods on the tokens of teachers, with and without noise: one row per teacher, noise, method and seed."""

import csv
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.part_learning.methods import METHODS, EncodedImages, FittedLabeler, LabelingTask
from semmae.core import distributed
from semmae.core.config import load_config
from semmae.core.rng import numpy_generator, torch_generator
from semmae.data.dataset import Reader
from semmae.data.loader import batches
from semmae.data.patch_masks import WholeView
from semmae.evaluation.object_position import place_of_maps
from semmae.evaluation.part_metrics import PartMetrics
from semmae.evaluation.splits import open_masked_splits
from semmae.models import vit
from semmae.models.teacher import Teacher
from semmae.parts.content_keys import ContentKeys
from semmae.parts.part_learner import foreground_evidence
from semmae.runs.run import Run
from stages.parts import PartsConfig

BATCH_SIZE = 64


@dataclass(frozen=True)
class ScoreOptions:
    """What is scored.

    Attributes:
        noise: Standard deviations of the noise, relative to those of the tokens.
        parts: Numbers of parts, without the background.
        methods: Keys of `METHODS`.
        images: Number of images of train that each seed draws.
    """

    noise: list[float]
    parts: list[int]
    seeds: list[int]
    methods: list[str]
    images: int


@dataclass(frozen=True)
class ScoreRow:
    """The scores of one method on val, per patch. `PartMetrics` and `PositionTable` define them."""

    dataset: str
    teacher: str
    noise: float
    parts: int
    method: str
    seed: int
    nmi_fg: float
    ari_fg: float
    miou: float
    fg_iou: float
    place: float
    labels: int
    evidence: float  # `foreground_evidence` of the noisy tokens of the sample

    @property
    def key(self) -> tuple[str, ...]:
        """What the row measures."""
        return tuple(str(value) for value in list(asdict(self).values())[:6])


def score_teachers(teachers: dict[str, Teacher], dataset: Path, options: ScoreOptions, out: Path) -> None:
    """Score all methods on all teachers, and add the rows to a CSV file. Rows that the file has are not computed again.

    Args:
        teachers: The teachers by name.
        dataset: A dataset with masks of parts.
        options: What is scored.
        out: The CSV file.

    Raises:
        ValueError: The masks of the dataset do not label parts.
    """
    train, val = open_masked_splits(dataset)
    if train.mask_kind != "parts":
        raise ValueError(
            f"{dataset}: the kind of its masks is {train.mask_kind}; expected parts. Choose another --dataset"
        )
    rows = read_rows(out) if out.exists() else []
    done, start, count = {row.key for row in rows}, time.perf_counter(), 0
    wanted = {
        (dataset.name, name, str(noise), str(parts), method, str(seed))
        for name, noise, parts, method, seed in product(
            teachers, options.noise, options.parts, options.methods, options.seeds
        )
    }
    total = len(wanted - done)
    section = load_config(PartsConfig, "parts")
    inputs = [teacher.digest for teacher in teachers.values()]
    with (
        distributed.world("cpu") as world,
        Run("part_learning", world, out=out, params=options, inputs=inputs, checkpoint_minutes=0) as run,
    ):
        for name, teacher in teachers.items():
            for row in score_teacher(name, teacher, section, (train, val), options, run, done):
                rows.append(row)
                write_rows(out, rows)
                count += 1
                remaining = (time.perf_counter() - start) / count * max(total - count, 0) / 60
                print(
                    f"{row.teacher}, noise {row.noise}, {row.parts} parts, seed {row.seed}, {row.method}: NMI "
                    f"{row.nmi_fg:.3f}, part mIoU {row.miou:.3f}, foreground IoU {row.fg_iou:.3f}; at most "
                    f"{remaining:.1f} minutes remain",
                    flush=True,
                )


def score_teacher(
    name: str,
    teacher: Teacher,
    section: PartsConfig,
    splits: tuple[Reader, Reader],
    options: ScoreOptions,
    run: Run,
    done: set[tuple[str, ...]],
) -> Iterator[ScoreRow]:
    """Encode the images of both splits once, and yield the rows of a teacher that are not in `done`."""
    section = replace(section, img_size=teacher.config["img_size"])
    grid, dataset = teacher.grid(section.img_size), splits[0].dataset.name
    train, val = (encode_images(teacher, reader, section.img_size) for reader in splits)
    scale = float(train.patch.flatten(0, 1).var(0).mean().sqrt())
    for noise in options.noise:
        for seed in options.seeds:
            wanted = [
                (parts, method)
                for parts in options.parts
                for method in options.methods
                if (dataset, name, str(noise), str(parts), method, str(seed)) not in done
            ]
            if not wanted:
                continue
            indices = numpy_generator(seed, "sample").permutation(len(train.patch))[: options.images]
            sample = EncodedImages(train.patch[indices], train.attention[indices], train.counts[indices])
            sample = sample._replace(patch=add_noise(sample.patch, noise * scale, seed, "train"))
            noisy_val = val._replace(patch=add_noise(val.patch, noise * scale, seed, "val"))
            evidence = rate_foreground(sample.patch, grid)
            for parts, method in wanted:
                run.exit_if_stopped("while it scored methods")
                task = LabelingTask(replace(section, num_parts=parts), teacher, sample, noise, seed, run)
                try:
                    labeler = METHODS[method](task)
                except ValueError as error:  # the tokens of noisy teachers may show no foreground
                    print(f"{name}, noise {noise}, seed {seed}, {method}: no scores, because {error}", file=sys.stderr)
                    continue
                if labeler is not None:
                    scores = score_labeler(labeler, sample, noisy_val, grid)
                    yield ScoreRow(dataset, name, noise, parts, method, seed, evidence=evidence, **scores)


@torch.no_grad()
def encode_images(teacher: Teacher, reader: Reader, img_size: int) -> EncodedImages:
    """Encode all images of a split."""
    grid = teacher.grid(img_size)
    vit.use_fastest_attention(teacher, torch.device("cpu"), frozen_grid=grid)
    view = WholeView(img_size, grid, num_classes=len(reader.mask_names))
    patch, attention, counts = [], [], []
    for batch in batches(reader, np.arange(len(reader)), view, batch_size=BATCH_SIZE, workers=0):
        tokens = teacher.encode(batch["image"])
        patch.append(tokens.patch)
        attention.append(tokens.attention)
        counts.append(batch["counts"].numpy())
    return EncodedImages(torch.cat(patch), torch.cat(attention), np.concatenate(counts))


def add_noise(patch: Float[Tensor, "s n d"], deviation: float, seed: int, split: str) -> Float[Tensor, "s n d"]:
    """Add Gaussian noise to all channels, a function of seed and split."""
    if deviation == 0:
        return patch
    return patch + deviation * torch.randn(patch.shape, generator=torch_generator(seed, "noise", split))


def rate_foreground(patch: Float[Tensor, "s n d"], grid: tuple[int, int]) -> float:
    """Compute the `foreground_evidence` of tokens, as the part learner does."""
    keys = ContentKeys(grid=grid, embed_dim=patch.shape[2], smoothing_steps=0, background=True)
    keys.fit(patch)
    return foreground_evidence(keys.foreground_score(patch), grid)


def score_labeler(
    labeler: FittedLabeler, train: EncodedImages, val: EncodedImages, grid: tuple[int, int]
) -> dict[str, float]:
    """Match the labels to true labels on the sample of train, and score them on val, per patch."""
    num_classes = train.counts.shape[-1]
    metrics = PartMetrics(labeler.num_labels, num_classes, parts=True)
    metrics.update_train(labeler.label(train.patch).ravel(), train.counts.reshape(-1, num_classes))
    maps = labeler.label(val.patch)
    for labels, counts in zip(maps, val.counts, strict=True):
        metrics.update_val(labels, counts)
    is_object = metrics.foreground("patch")
    if labeler.background is not None:
        is_object = np.arange(labeler.num_labels) != labeler.background
    computed = metrics.compute()["patch"]
    scores = {name: computed[name] for name in ("nmi_fg", "ari_fg", "miou", "fg_iou")}
    return scores | {"place": place_of_maps(maps, is_object[maps], grid), "labels": labeler.num_labels}


def read_rows(path: Path) -> list[ScoreRow]:
    """Read the rows of a CSV file."""
    types = {field.name: field.type for field in fields(ScoreRow)}
    with path.open(newline="") as file:
        return [ScoreRow(**{name: types[name](value) for name, value in row.items()}) for row in csv.DictReader(file)]


def write_rows(path: Path, rows: list[ScoreRow]) -> None:
    """Write the rows to a CSV file, with five decimals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(ScoreRow)], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            values = asdict(row)
            scores = {name: round(value, 5) for name, value in values.items() if isinstance(value, float)}
            writer.writerow(values | scores)
