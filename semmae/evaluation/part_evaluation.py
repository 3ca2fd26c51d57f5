"""Compute the metrics of several patch labelers in one pass over train and one pass over val."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8
from torch import Tensor

from semmae.data.patch_masks import majority_labels
from semmae.evaluation.center_mask import CenterMask
from semmae.evaluation.part_metrics import LEVELS, Level, PartMetrics
from semmae.models.teacher import Tokens


class PartBatch(NamedTuple):
    """A batch of images with masks.

    Attributes:
        images: Whole images, resized to a square.
        tokens: The teacher's tokens.
        counts: Pixels of each true label in each patch (`cell_counts`).
    """

    images: UInt8[Tensor, "b 3 H W"]
    tokens: Tokens
    counts: Integer[np.ndarray, "b n g"]

    def true_labels(self) -> Integer[np.ndarray, "b n"]:
        """Return the true label of each patch; 255 for patches without a labeled pixel."""
        return majority_labels(self.counts)


class PatchLabeler(NamedTuple):
    """A function that labels the patches of a batch: a part method, a baseline or a reference.

    Attributes:
        num_labels: Number of labels.
        label: Returns the part maps of a batch.
        levels: The levels at which metrics are reported.
    """

    num_labels: int
    label: Callable[[PartBatch], Integer[np.ndarray, "b n"]]
    levels: tuple[Level, ...] = LEVELS


def evaluate_labelers(
    labelers: Mapping[str, PatchLabeler],
    center_mask: CenterMask,
    train: Iterable[PartBatch],
    val: Iterable[PartBatch],
    *,
    parts: bool,
) -> dict[str, dict[Level, dict[str, float]]]:
    """Compute the metrics of all labelers and of the center mask.

    Args:
        labelers: Labelers by name.
        center_mask: The center mask, before its first image.
        train: The images on which labels are matched to true labels.
        val: The images on which labels are scored.
        parts: Whether the masks label parts, not only the foreground.

    Returns:
        Metrics by name and level; the name of the center mask is `center_mask`.
    """
    metrics: dict[str, PartMetrics] = {}
    for batch in train:
        num_classes = batch.counts.shape[2]
        for name, labeler in labelers.items():
            metric = metrics.setdefault(name, PartMetrics(labeler.num_labels, num_classes, parts=parts))
            for labels, counts in zip(labeler.label(batch), batch.counts, strict=True):
                metric.update_train(labels, counts)
        for counts in batch.counts:
            center_mask.update_train(counts)
    for batch in val:
        for name, labeler in labelers.items():
            for labels, counts in zip(labeler.label(batch), batch.counts, strict=True):
                metrics[name].update_val(labels, counts)
        for counts in batch.counts:
            center_mask.update_val(counts)
    computed = {name: metric.compute() for name, metric in metrics.items()}
    selected = {name: {level: computed[name][level] for level in labelers[name].levels} for name in computed}
    return selected | {"center_mask": center_mask.compute()}
