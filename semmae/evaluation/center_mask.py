"""The center mask: a baseline of the foreground scores that ignores the image."""

import numpy as np
from jaxtyping import Integer

from semmae.evaluation.part_metrics import LEVELS, Level, level_counts

THRESHOLDS = np.arange(1, 20) / 20


class CenterMask:
    """The same foreground mask for every image: the positions that are foreground in a minimum share of train.

    Args:
        train_counts: The sum of `cell_counts` over all of train.
    """

    def __init__(self, train_counts: Integer[np.ndarray, "n g"]) -> None:
        share = train_counts[:, 1:].sum(1) / np.maximum(train_counts.sum(1), 1)
        self.masks = (share >= THRESHOLDS[:, None]).astype(int)  # (thresholds, n)
        self.train: dict[Level, list[list[float]]] = {level: [] for level in LEVELS}
        self.val: dict[Level, list[list[float]]] = {level: [] for level in LEVELS}

    def update_train(self, counts: Integer[np.ndarray, "n g"]) -> None:
        """Add the `cell_counts` of an image of train."""
        self._update(self.train, counts)

    def update_val(self, counts: Integer[np.ndarray, "n g"]) -> None:
        """Add the `cell_counts` of an image of val."""
        self._update(self.val, counts)

    def compute(self) -> dict[Level, dict[str, float]]:
        """Compute the mean `fg_iou` over val at each level. The threshold is the best one on train."""
        best = {level: np.mean(self.train[level], axis=0).argmax() for level in LEVELS}
        return {level: {"fg_iou": float(np.mean(self.val[level], axis=0)[best[level]])} for level in LEVELS}

    def _update(self, ious: dict[Level, list[list[float]]], counts: Integer[np.ndarray, "n g"]) -> None:
        """Add the IoU of each threshold's mask, unless the image shows no foreground."""
        for level in LEVELS:
            background, *parts = level_counts(counts, level).T
            foreground = np.sum(parts, axis=0)
            if foreground.any():
                ious[level].append((self.masks @ foreground / (foreground.sum() + self.masks @ background)).tolist())
