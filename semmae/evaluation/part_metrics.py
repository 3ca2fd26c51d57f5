"""Metrics of part maps against ground-truth masks.

All metrics come from contingency tables. Rows are labels of the part map. Columns are true labels; column 0 is the
background. A table at the pixel level counts pixels, each with the label of its patch. A table at the patch level
counts patches; the true label of a patch is the most frequent one among its pixels. `patch_masks.cell_counts` counts
the pixels per patch and true label. Labels are matched to true labels by the tables of train, and scored by the tables
of val.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Integer

from semmae.data.patch_masks import majority_labels

MIN_USED_SHARE = 0.01  # a label with a smaller share of val counts as unused
Level = Literal["patch", "pixel"]
LEVELS: tuple[Level, ...] = ("patch", "pixel")


class PartMetrics:
    """Accumulate the contingency tables of one part method or baseline.

    Add all images of train before the first image of val.

    Args:
        num_labels: Number of labels of the part maps.
        num_classes: Number of true labels, background included.
        parts: Whether the masks label parts. If they only label the foreground, `compute` leaves out the metrics of
            parts.
        foreground: Whether each label is a foreground label; None: chosen on train by `foreground_labels`.
    """

    def __init__(
        self, num_labels: int, num_classes: int, *, parts: bool, foreground: Bool[np.ndarray, " l"] | None = None
    ) -> None:
        self.num_labels, self.parts, self.given_foreground = num_labels, parts, foreground
        self.train = {level: np.zeros((num_labels, num_classes), np.int64) for level in LEVELS}
        self.val = {level: np.zeros((num_labels, num_classes), np.int64) for level in LEVELS}
        self.ious: dict[str, list[float]] = {level: [] for level in LEVELS}

    def foreground(self, level: Level) -> Bool[np.ndarray, " l"]:
        """Return whether each label is a foreground label, after the last image of train."""
        return foreground_labels(self.train[level]) if self.given_foreground is None else self.given_foreground

    def update_train(self, labels: Integer[np.ndarray, " n"], counts: Integer[np.ndarray, "n g"]) -> None:
        """Add an image of train: its part map and its `cell_counts`."""
        for level in LEVELS:
            self.train[level] += contingency(labels, counts, num_labels=self.num_labels, level=level)

    def update_val(self, labels: Integer[np.ndarray, " n"], counts: Integer[np.ndarray, "n g"]) -> None:
        """Add an image of val: its part map and its `cell_counts`."""
        for level in LEVELS:
            table = contingency(labels, counts, num_labels=self.num_labels, level=level)
            iou = foreground_iou(table, self.foreground(level))
            self.val[level] += table
            self.ious[level] += [] if iou is None else [iou]

    def compute(self) -> dict[Level, dict[str, float]]:
        """Compute the metrics of each level.

        Returns:
            - `fg_iou`: the mean of `foreground_iou` over the images of val that show foreground.
            - `nmi_all`, `ari_all`: `nmi` and `ari` after `merge_background`.
            - `used`, `background_share`: see `used_share` and `background_share`.
            - With parts, `nmi_fg`, `ari_fg`: `nmi` and `ari` on the true foreground.
            - With parts, `miou`, `consistency`: see `part_miou` and `consistency`.

        Raises:
            ValueError: No mask of val shows any foreground.
        """
        if not all(self.ious.values()):
            raise ValueError(
                "no mask of val shows any foreground; expected masks with labels above 0. Add such masks to the "
                "dataset, or remove it from evaluations.part_scores"
            )
        return {level: self._compute_level(level) for level in LEVELS}

    def _compute_level(self, level: Level) -> dict[str, float]:
        train, val = self.train[level], self.val[level]
        merged = merge_background(val, self.foreground(level))
        metrics = {
            "fg_iou": float(np.mean(self.ious[level])), "nmi_all": nmi(merged), "ari_all": ari(merged),
            "used": used_share(val), "background_share": background_share(val),
        }  # fmt: skip
        if self.parts:
            metrics |= {
                "nmi_fg": nmi(val[:, 1:]), "ari_fg": ari(val[:, 1:]), "miou": part_miou(val, match_labels(train)),
                "consistency": consistency(train, val),
            }  # fmt: skip
        return metrics


def contingency(
    labels: Integer[np.ndarray, " n"], counts: Integer[np.ndarray, "n g"], *, num_labels: int, level: Level
) -> Integer[np.ndarray, "l g"]:
    """Compute the contingency table of one image from its part map and its `cell_counts`."""
    is_label = np.equal.outer(np.arange(num_labels), labels).astype(float)  # BLAS multiplies no integers
    return (is_label @ level_counts(counts, level)).astype(np.int64)


def level_counts(counts: Integer[np.ndarray, "*n g"], level: Level) -> Integer[np.ndarray, "*n g"]:
    """Return the pixels of each patch and true label; at the level `patch`, 1 for the true label of the patch."""
    if level == "pixel":
        return counts
    return (majority_labels(counts)[..., None] == np.arange(counts.shape[-1])).astype(np.int64)


def foreground_labels(train: Integer[np.ndarray, "l g"]) -> Bool[np.ndarray, " l"]:
    """Choose the set of labels whose union has the highest IoU with the foreground of all of train.

    The function sorts the labels by the share of their area that is foreground. It then compares all prefixes. The best
    set is a prefix, because a further label raises an IoU of x if and only if its share is above x / (1 + x). A label
    that never covers foreground of train is not chosen.

    Returns:
        Whether each label is a foreground label.
    """
    true, size = train[:, 1:].sum(1), train.sum(1)
    order = np.argsort(-true / np.maximum(size, 1), kind="stable")
    iou = true[order].cumsum() / np.maximum(true.sum() + (size - true)[order].cumsum(), 1)
    chosen = np.zeros(len(train), dtype=bool)
    chosen[order[: iou.argmax() + 1]] = True
    return chosen & (true > 0)


def foreground_iou(image: Integer[np.ndarray, "l g"], foreground: Bool[np.ndarray, " l"]) -> float | None:
    """Compute the IoU of the foreground labels and the true foreground of an image; None without true foreground."""
    true = image[:, 1:].sum()
    intersection = image[foreground, 1:].sum()
    return float(intersection / (true + image[foreground, 0].sum())) if true else None


def merge_background(
    table: Integer[np.ndarray, "l g"], foreground: Bool[np.ndarray, " l"]
) -> Integer[np.ndarray, "m g"]:
    """Merge the rows of all labels that are not foreground labels into the first row."""
    return np.concatenate([table[~foreground].sum(0, keepdims=True), table[foreground]])


def nmi(table: Integer[np.ndarray, "l g"]) -> float:
    """Compute normalized mutual information, 2 I / (H + H'); 1 if both sides have one cluster."""
    joint = table / table.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    entropy = _entropy(rows) + _entropy(columns)
    if entropy == 0:
        return 1.0
    information = entropy - _entropy(joint)
    return float(np.clip(2 * information / entropy, 0, 1))  # rounding may exceed the range


def _entropy(p: Float[np.ndarray, "..."]) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def ari(table: Integer[np.ndarray, "l g"]) -> float:
    """Compute the adjusted Rand index (Hubert & Arabie, 1985): 0 for chance, 1 for equal clusterings."""
    agree, rows, columns, total = (
        float((x.astype(np.float64) * (x - 1) / 2).sum()) for x in (table, table.sum(1), table.sum(0), table.sum())
    )
    expected, largest = rows * columns / max(total, 1), (rows + columns) / 2
    return 1.0 if largest == expected else (agree - expected) / (largest - expected)


def match_labels(train: Integer[np.ndarray, "l g"]) -> Integer[np.ndarray, " g"]:
    """Match each true label to one label so that the sum of IoUs on train is highest (Hungarian algorithm).

    Returns:
        The label of each true label, background included; -1 if there are fewer labels than true labels.
    """
    from scipy.optimize import linear_sum_assignment  # a slow import

    labels, true = linear_sum_assignment(label_iou(train), maximize=True)
    matched = np.full(train.shape[1], -1)
    matched[true] = labels
    return matched


def part_miou(val: Integer[np.ndarray, "l g"], matched: Integer[np.ndarray, " g"]) -> float:
    """Compute the mean IoU between each part that occurs in val and its matched label. The background is left out.

    A part without a matched label has IoU 0.
    """
    parts = 1 + np.flatnonzero(val[:, 1:].sum(0))
    iou = np.where(matched[parts] >= 0, label_iou(val)[matched[parts], parts], 0)
    return float(iou.mean())


def consistency(train: Integer[np.ndarray, "l g"], val: Integer[np.ndarray, "l g"]) -> float:
    """Compute the share of the foreground of val that has the expected part.

    The expected part of a label is the most frequent part under it on train. If a label never covers foreground of
    train, its expected part is the first one.
    """
    expected_part = 1 + train[:, 1:].argmax(1)
    return float(val[np.arange(len(val)), expected_part].sum() / val[:, 1:].sum())


def used_share(val: Integer[np.ndarray, "l g"]) -> float:
    """Compute the share of labels that cover at least `MIN_USED_SHARE` of val."""
    return float((val.sum(1) >= MIN_USED_SHARE * val.sum()).mean())


def background_share(val: Integer[np.ndarray, "l g"]) -> float:
    """Compute the share of the true background under its most frequent label; 1 if there is no background."""
    return float(val[:, 0].max() / val[:, 0].sum()) if val[:, 0].any() else 1.0


def label_iou(table: Integer[np.ndarray, "l g"]) -> Float[np.ndarray, "l g"]:
    """Compute the IoU of each label with each true label; 0 if neither occurs."""
    union = table.sum(1, keepdims=True) + table.sum(0, keepdims=True) - table
    return table / np.maximum(union, 1)
