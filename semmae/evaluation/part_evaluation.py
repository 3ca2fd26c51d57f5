"""Compute the metrics of several patch labelers in one pass over train and one pass over val."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor

from semmae.data.patch_masks import majority_labels
from semmae.evaluation.center_mask import CenterMask
from semmae.evaluation.object_position import PositionTable
from semmae.evaluation.part_metrics import Level, PartMetrics
from semmae.models.teacher import Tokens

LevelMetrics = dict[Level, dict[str, float]]


class PartBatch(NamedTuple):
    """A batch of images with masks.

    Attributes:
        images: Whole images, resized to a square.
        tokens: The teacher's tokens.
        counts: Pixels of each true label in each patch (`cell_counts`).
        untrained: The patch tokens of an untrained teacher; None if no baseline needs them.
    """

    images: UInt8[Tensor, "b 3 H W"]
    tokens: Tokens
    counts: Integer[np.ndarray, "b n g"]
    untrained: Float[Tensor, "b n d"] | None = None

    def true_labels(self) -> Integer[np.ndarray, "b n"]:
        """Return the true label of each patch; 255 for patches without a labeled pixel."""
        return majority_labels(self.counts)


class PatchLabeler(NamedTuple):
    """A function that labels the patches of a batch: a part method, a baseline or a reference.

    Attributes:
        num_labels: Number of labels.
        label: Returns the part maps of a batch.
        background: The label of the background, if the method has one. All other labels are then the found object of
            `place`; otherwise the object is what the foreground labels of `PartMetrics` cover.
        role: `parts` has all metrics. `foreground` only has metrics of the foreground, which is label 1. The role
            `truth` is the true labels: per patch, they only have the metrics that compare with no truth.
    """

    num_labels: int
    label: Callable[[PartBatch], Integer[np.ndarray, "b n"]]
    background: int | None = None
    role: Literal["parts", "foreground", "truth"] = "parts"


class LabelerScores:
    """Accumulate the metrics of one labeler. Add all batches of train before the first batch of val.

    Args:
        labeler: The labeler.
        num_classes: Number of true labels, background included.
        grid: Rows and columns of patches.
        parts: Whether the masks label parts, not only the foreground.
    """

    def __init__(self, labeler: PatchLabeler, *, num_classes: int, grid: tuple[int, int], parts: bool) -> None:
        self.labeler = labeler
        foreground = np.array([False, True]) if labeler.role == "foreground" else None
        self.metrics = PartMetrics(labeler.num_labels, num_classes, parts=parts, foreground=foreground)
        self.positions = PositionTable(labeler.num_labels, grid)

    @property
    def object_labels(self) -> Bool[np.ndarray, " l"]:
        """Whether each label belongs to the found object; see `PatchLabeler.background`."""
        if self.labeler.background is None:
            return self.metrics.foreground("patch")
        return np.arange(self.labeler.num_labels) != self.labeler.background

    def update_train(self, batch: PartBatch) -> None:
        """Add a batch of train. The role `foreground` has nothing to match."""
        if self.labeler.role != "foreground":
            for labels, counts in zip(self.labeler.label(batch), batch.counts, strict=True):
                self.metrics.update_train(labels, counts)

    def update_val(self, batch: PartBatch) -> None:
        """Add a batch of val."""
        object_labels = np.flatnonzero(self.object_labels)
        for labels, counts in zip(self.labeler.label(batch), batch.counts, strict=True):
            self.metrics.update_val(labels, counts)
            self.positions.update(labels, np.isin(labels, object_labels))

    def compute(self) -> LevelMetrics:
        """Compute the metrics of the role at each level.

        Returns:
            The metrics of `PartMetrics.compute`; `labels`, the number of labels; and per patch `place`, see
            `PositionTable.compute`.
        """
        computed = self.metrics.compute()
        num_labels = {"labels": self.labeler.num_labels}
        if self.labeler.role == "foreground":
            return {level: num_labels | {"fg_iou": metrics["fg_iou"]} for level, metrics in computed.items()}
        patch = {} if self.labeler.role == "truth" else computed["patch"]
        place = {"place": self.positions.compute()}
        return {"patch": num_labels | patch | place, "pixel": num_labels | computed["pixel"]}


def evaluate_labelers(
    labelers: Mapping[str, Sequence[PatchLabeler]],
    center_mask: CenterMask,
    train: Iterable[PartBatch],
    val: Iterable[PartBatch],
    *,
    num_classes: int,
    grid: tuple[int, int],
    parts: bool,
) -> dict[str, list[LabelerScores]]:
    """Accumulate the metrics of all labelers and of the center mask.

    Args:
        labelers: Labelers by name: a name has a labeler for each of its clusterings.
        center_mask: The center mask, before its first image.
        train: The images on which labels are matched to true labels.
        val: The images on which labels are scored.
        num_classes: Number of true labels, background included.
        grid: Rows and columns of patches.
        parts: Whether the masks label parts, not only the foreground.
    """
    scores = {
        name: [LabelerScores(labeler, num_classes=num_classes, grid=grid, parts=parts) for labeler in clusterings]
        for name, clusterings in labelers.items()
    }
    for batch in train:
        for clusterings in scores.values():
            for score in clusterings:
                score.update_train(batch)
        for counts in batch.counts:
            center_mask.update_train(counts)
    for batch in val:
        for clusterings in scores.values():
            for score in clusterings:
                score.update_val(batch)
        for counts in batch.counts:
            center_mask.update_val(counts)
    return scores


def average(clusterings: Sequence[LevelMetrics]) -> tuple[LevelMetrics, LevelMetrics]:
    """Return mean and standard deviation of each metric over clusterings; no deviations for a single clustering."""
    means: LevelMetrics = {}
    deviations: LevelMetrics = {}
    for level, metrics in clusterings[0].items():
        values = {metric: [clustering[level][metric] for clustering in clusterings] for metric in metrics}
        means[level] = {metric: v[0] if len(set(v)) == 1 else fmean(v) for metric, v in values.items()}
        deviations[level] = {metric: stdev(v) for metric, v in values.items() if metric != "labels" and len(v) > 1}
    return means, deviations
