"""Part scores: how well a map of labels per patch agrees with a ground-truth mask, at the patches and at the pixels.

A mask is first reduced to `cell_counts`: how many pixels of each true label lie in each cell of the patch grid. Pixels
of 255 count nowhere. All else is contingency tables, labels x true labels, so memory does not grow with the data:

- pixel level: every pixel takes the label of its cell (nearest upsampling), so the table adds up cell counts.
- patch level: every cell counts once, for its `majority` label; a cell without labeled pixels counts nowhere.

The train tables decide what a label means, the val tables what that is worth (`PartScore`):

- `foreground_labels`: the labels that together cover the foreground (true labels >= 1) of train best.
- `foreground_iou`: of one image; the mean is over the images of val that show any foreground at that level.
- `nmi` (arithmetic) and `ari`: of the table pooled over val, (fg) on the true foreground only, (all) on everything,
  with the labels that are background on train merged into one.
- `part_miou`: one label per true label, matched on train (Hungarian); mean over the parts that val shows, without the
  background.
- `consistency`: does a label mean the same part in other images? Each label stands for its commonest part of train.
- `used`: which labels are more than an accident. `background_share`: is the background one label or many?
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Integer, Num, UInt8

IGNORE = 255
USED = 0.01  # the least share of a label that counts as used
Level = Literal["patch", "pixel"]
LEVELS: tuple[Level, ...] = ("patch", "pixel")


def cell_counts(
    mask: UInt8[np.ndarray, "H W"], *, grid: tuple[int, int], num_classes: int
) -> Integer[np.ndarray, "n g"]:
    """Pixels of each true label 0...num_classes-1 in each cell, row-major; a pixel is where its center is."""
    height, width = mask.shape
    rows = (2 * np.arange(height) + 1) * grid[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * grid[1] // (2 * width)
    labeled = mask != IGNORE
    if (strange := mask[labeled & (mask >= num_classes)]).size:
        raise ValueError(
            f"a mask holds the label {strange[0]}; its dataset names 0 to {num_classes - 1}, and 255 to ignore"
        )
    cells = rows[:, None] * grid[1] + columns
    flat = np.bincount((cells * num_classes + mask)[labeled], minlength=grid[0] * grid[1] * num_classes)
    return flat.reshape(-1, num_classes)


def majority(counts: Num[np.ndarray, "n g"]) -> Integer[np.ndarray, " n"]:
    """The true label of each cell: foreground if most of its labeled pixels are, then its largest part.

    In two steps, so that what is foreground does not depend on how many parts the masks tell apart. Of two equals the
    lower label wins; a cell without labeled pixels is 255.
    """
    foreground = counts[:, 1:].sum(1) > counts[:, 0]
    return np.where(counts.any(1), np.where(foreground, 1 + counts[:, 1:].argmax(1), 0), IGNORE)


def contingency(
    labels: Integer[np.ndarray, " n"], counts: Integer[np.ndarray, "n g"], *, num_labels: int, level: Level
) -> Integer[np.ndarray, "l g"]:
    """What lies under each label of one image's patch map: pixels, or patches by their majority."""
    if level == "patch":
        counts = majority(counts)[:, None] == np.arange(counts.shape[1])
    return np.equal.outer(np.arange(num_labels), labels).astype(np.int64) @ counts


def foreground_labels(train: Integer[np.ndarray, "l g"]) -> Bool[np.ndarray, " l"]:
    """The set of labels whose union has the highest IoU with the foreground of train, all images pooled.

    In the order of their share of foreground the best set is a prefix: at its IoU x, adding a label of share above
    x / (1 + x) helps and any other hurts. The center mask picks its threshold on train likewise. Unused labels are out.
    """
    true, size = train[:, 1:].sum(1), train.sum(1)
    order = np.argsort(-true / np.maximum(size, 1), kind="stable")
    iou = true[order].cumsum() / np.maximum(true.sum() + (size - true)[order].cumsum(), 1)
    chosen = np.zeros(len(train), dtype=bool)
    chosen[order[: iou.argmax() + 1]] = True
    return chosen & (true > 0)


def foreground_iou(image: Integer[np.ndarray, "l g"], foreground: Bool[np.ndarray, " l"]) -> float | None:
    """Intersection over union of the foreground labels and the true foreground; None where that is empty."""
    true = image[:, 1:].sum()
    intersection = image[foreground, 1:].sum()
    return float(intersection / (true + image[foreground, 0].sum())) if true else None


def merge_background(
    table: Integer[np.ndarray, "l g"], foreground: Bool[np.ndarray, " l"]
) -> Integer[np.ndarray, "m g"]:
    """The table with all labels that are not foreground as one."""
    return np.concatenate([table[~foreground].sum(0, keepdims=True), table[foreground]])


def nmi(table: Integer[np.ndarray, "l g"]) -> float:
    """Normalized mutual information, I / mean(H, H'); 1 where both sides are a single cluster."""
    joint = table / table.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    entropy = _entropy(rows) + _entropy(columns)
    if entropy == 0:
        return 1.0
    information = entropy - _entropy(joint)
    return float(np.clip(2 * information / entropy, 0, 1))  # clip: rounding


def _entropy(p: Float[np.ndarray, "..."]) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def ari(table: Integer[np.ndarray, "l g"]) -> float:
    """The adjusted Rand index (Hubert & Arabie 1985) over pairs: 0 by chance, 1 where both sides are the same."""
    agree, rows, columns, total = (
        float((x.astype(np.float64) * (x - 1) / 2).sum()) for x in (table, table.sum(1), table.sum(0), table.sum())
    )
    expected, largest = rows * columns / max(total, 1), (rows + columns) / 2
    return 1.0 if largest == expected else (agree - expected) / (largest - expected)


def match(train: Integer[np.ndarray, "l g"]) -> Integer[np.ndarray, " g"]:
    """A label for each true label, background too, with the highest sum of IoUs on train; -1 where labels run out."""
    from scipy.optimize import linear_sum_assignment  # here, for it loads half of SciPy

    labels, true = linear_sum_assignment(label_iou(train), maximize=True)
    matched = np.full(train.shape[1], -1)
    matched[true] = labels
    return matched


def part_miou(val: Integer[np.ndarray, "l g"], matched: Integer[np.ndarray, " g"]) -> float:
    """Mean IoU of the parts (true labels >= 1) that val shows with their labels; a part without a label has IoU 0.

    A label without a part is no part: what lies under it is missed.
    """
    parts = 1 + np.flatnonzero(val[:, 1:].sum(0))
    iou = np.where(matched[parts] >= 0, label_iou(val)[matched[parts], parts], 0)
    return float(iou.mean())


def consistency(train: Integer[np.ndarray, "l g"], val: Integer[np.ndarray, "l g"]) -> float:
    """The share of val's true foreground whose label has that very part as its commonest one on train."""
    means = train[:, 1:].argmax(1)  # a label that train never shows on the foreground stands for the first part
    return float(val[np.arange(len(val)), 1 + means].sum() / val[:, 1:].sum())


def used(val: Integer[np.ndarray, "l g"]) -> float:
    """The share of labels that have at least 1 % of everything."""
    return float((val.sum(1) >= USED * val.sum()).mean())


def background_share(val: Integer[np.ndarray, "l g"]) -> float:
    """The share of the true background under the label that is commonest there; 1 where there is no background."""
    return float(val[:, 0].max() / val[:, 0].sum()) if val[:, 0].any() else 1.0


def label_iou(table: Integer[np.ndarray, "l g"]) -> Float[np.ndarray, "l g"]:
    """Intersection over union of each label with each true label; 0 where neither occurs."""
    union = table.sum(1, keepdims=True) + table.sum(0, keepdims=True) - table
    return table / np.maximum(union, 1)


class PartScore:
    """The scores of one way to label patches: show it every image of train, then every image of val.

    `parts` says whether the true labels tell parts apart; where they are only background and foreground, the scores
    that need parts (NMI and ARI on the foreground, part mIoU, consistency) would say nothing and are left out.
    """

    def __init__(self, num_labels: int, num_classes: int, *, parts: bool) -> None:
        self.num_labels, self.parts = num_labels, parts
        self.train = {level: np.zeros((num_labels, num_classes), np.int64) for level in LEVELS}
        self.val = {level: np.zeros((num_labels, num_classes), np.int64) for level in LEVELS}
        self.ious: dict[str, list[float]] = {level: [] for level in LEVELS}

    def add_train(self, labels: Integer[np.ndarray, " n"], counts: Integer[np.ndarray, "n g"]) -> None:
        """One image of train: its patch map and its cell counts."""
        for level in LEVELS:
            self.train[level] += contingency(labels, counts, num_labels=self.num_labels, level=level)

    def add_val(self, labels: Integer[np.ndarray, " n"], counts: Integer[np.ndarray, "n g"]) -> None:
        """One image of val, after all of train."""
        for level in LEVELS:
            image = contingency(labels, counts, num_labels=self.num_labels, level=level)
            iou = foreground_iou(image, foreground_labels(self.train[level]))
            self.val[level] += image
            self.ious[level] += [] if iou is None else [iou]

    def scores(self) -> dict[str, dict[str, float]]:
        """Per level: fg_iou, nmi_all, ari_all, used, background_share; with parts nmi_fg, ari_fg, miou, consistency."""
        if not all(self.ious.values()):
            raise ValueError("no mask of val shows any foreground; part scores need masks with labels above 0")
        return {level: self._level(self.train[level], self.val[level], self.ious[level]) for level in LEVELS}

    def _level(self, train: np.ndarray, val: np.ndarray, ious: list[float]) -> dict[str, float]:
        everything = merge_background(val, foreground_labels(train))
        scores = {
            "fg_iou": float(np.mean(ious)), "nmi_all": nmi(everything), "ari_all": ari(everything),
            "used": used(val), "background_share": background_share(val),
        }  # fmt: skip
        if self.parts:
            scores |= {
                "nmi_fg": nmi(val[:, 1:]), "ari_fg": ari(val[:, 1:]), "miou": part_miou(val, match(train)),
                "consistency": consistency(train, val),
            }  # fmt: skip
        return scores
