"""What a part score is worth: labels per patch from no learning at all, and from the ground truth itself.

`lines` fits them on a sample of train and returns a function per line, batch -> labels:
- `color_kmeans`: k-means of each patch's mean and deviation of R, G and B.
- `untrained_kmeans`, `teacher_kmeans`: k-means of the patch tokens of an untrained teacher, and of the teacher.
- `attention_heads`: the heads of the teacher's class token as parts, as the paper's "raw attention" (table 4).
- `grid`: the image cut into as many equal rectangles as there are labels.
- `position`: the most frequent true label at each place, the same map for every image.
- `readout`: a supervised linear read-out of the teacher's tokens, the ceiling of any part method on them.
- `silhouette`: the true foreground as a single part. `perfect`: the true labels, the ceiling of any map of patches.

`CenterMask` is the one foreground mask that fits train best; it has no labels to assign, only a foreground IoU.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from semmae.core.rng import fold
from semmae.evaluation import part_metrics, patch_probe
from semmae.evaluation.part_metrics import LEVELS, PartScore, majority
from semmae.models.teacher import Tokens
from semmae.parts.part_method import KMeansParts

THRESHOLDS = np.arange(1, 20) / 20
MASS = 0.6  # the share of its attention that a head's mask keeps (DINO, figure 1)


class Batch(NamedTuple):
    """What a line may look at."""

    images: UInt8[Tensor, "b 3 H W"]
    tokens: Tokens
    heads: Float[Tensor, "b a n"]  # the teacher's class-token attention, each head's sum 1
    counts: Integer[np.ndarray, "b n g"]

    def truth(self) -> Integer[np.ndarray, "b n"]:
        """The true label of every patch, 255 where it has none."""
        return np.stack([majority(image) for image in self.counts])


class Line(NamedTuple):
    """A way to label patches, and how many labels it has."""

    num_labels: int
    label: Callable[[Batch], Integer[np.ndarray, "b n"]]


def lines(
    sample: list[Batch],
    train_counts: Integer[np.ndarray, "n g"],
    *,
    num_labels: int,
    grid: tuple[int, int],
    untrained: Callable[[UInt8[Tensor, "b 3 H W"]], Tokens],
    seed: int,
) -> dict[str, Line]:
    """The lines; those that cluster find `num_labels` clusters, `train_counts` is the sum over all of train,
    `untrained` a teacher before training.
    """
    num_classes = train_counts.shape[1]
    position = np.where(train_counts.any(1), majority(train_counts), 0)
    rectangles = grid_labels(grid, num_labels)

    def fresh(batch: Batch) -> Float[Tensor, "b n d"]:
        return untrained(batch.images).patch

    return {
        "color_kmeans": _color_kmeans(sample, grid, num_labels, fold(seed, "colour")),
        "untrained_kmeans": _token_kmeans(sample, fresh, grid, num_labels, fold(seed, "untrained")),
        "teacher_kmeans": _token_kmeans(
            sample, lambda batch: batch.tokens.patch, grid, num_labels, fold(seed, "teacher")
        ),
        "attention_heads": Line(sample[0].heads.shape[1] + 1, lambda batch: head_labels(batch.heads).cpu().numpy()),
        "grid": Line(int(rectangles.max()) + 1, lambda batch: np.tile(rectangles, (len(batch.images), 1))),
        "position": Line(num_classes, lambda batch: np.tile(position, (len(batch.images), 1))),
        "readout": _readout(sample, num_classes),
        "silhouette": Line(2, lambda batch: (batch.truth() > 0).astype(int)),
        "perfect": Line(num_classes, Batch.truth),
    }


def head_labels(attention: Float[Tensor, "b a n"]) -> Integer[Tensor, "b n"]:
    """The head that attends most to a patch, of those that keep it; `a` where none does.

    A head keeps its most attended patches, as many as hold MASS of its attention.
    """
    sorted_, ids = attention.sort(dim=2, descending=True)
    before = sorted_.cumsum(2) - sorted_
    kept = torch.zeros_like(attention, dtype=torch.bool).scatter(2, ids, before < MASS * attention.sum(2, keepdim=True))
    return torch.where(kept.any(1), (attention * kept).argmax(1), attention.shape[1])


def grid_labels(grid: tuple[int, int], count: int) -> Integer[np.ndarray, " n"]:
    """The rectangle of every patch, row-major, of at most `count` in as many rows as columns, give or take."""
    rows = int(count**0.5)
    columns = count // rows
    i, j = np.mgrid[: grid[0], : grid[1]]
    return (i * rows // grid[0] * columns + j * columns // grid[1]).ravel()


def patch_colors(images: UInt8[Tensor, "b 3 H W"], grid: tuple[int, int]) -> Float[Tensor, "b n 6"]:
    """Mean and standard deviation of R, G and B in every patch, in [0, 1]."""
    pixels = rearrange(images.float() / 255, "b c (h p) (w q) -> b (h w) (p q) c", h=grid[0], w=grid[1])
    return torch.cat([pixels.mean(2), pixels.std(2, correction=0)], dim=2)


def _color_kmeans(sample: list[Batch], grid: tuple[int, int], num_labels: int, seed: int) -> Line:
    def colors(batch: Batch) -> np.ndarray:
        return patch_colors(batch.images, grid).cpu().numpy()

    from sklearn.cluster import KMeans  # here, for it takes as long to load as a small stage to run

    points = np.concatenate([colors(batch).reshape(-1, 6) for batch in sample])
    clusters = KMeans(num_labels, n_init=4, random_state=seed % 2**32).fit(points)
    return Line(num_labels, lambda batch: clusters.predict(colors(batch).reshape(-1, 6)).reshape(len(batch.images), -1))


def _token_kmeans(
    sample: list[Batch],
    patch_tokens: Callable[[Batch], Float[Tensor, "b n d"]],
    grid: tuple[int, int],
    num_labels: int,
    seed: int,
) -> Line:
    """Clusters as `parts.method: kmeans` does."""
    patches = torch.cat([patch_tokens(batch).cpu() for batch in sample])
    clusters = KMeansParts(
        {"num_parts": num_labels, "background": False, "grid": grid, "embed_dim": patches.shape[2], "temperature": 1.0}
    )
    clusters.fit(patches, seed=seed)

    def label(batch: Batch) -> np.ndarray:
        tokens = batch.tokens._replace(patch=patch_tokens(batch).cpu())
        return clusters.assign(tokens).argmax(1).numpy()

    return Line(num_labels, label)


def _readout(sample: list[Batch], num_classes: int) -> Line:
    tokens = np.concatenate([batch.tokens.patch.flatten(0, 1).cpu().numpy() for batch in sample])
    truth = np.concatenate([batch.truth().ravel() for batch in sample])
    fitted = patch_probe.fit(tokens, truth, num_classes=num_classes)

    def label(batch: Batch) -> np.ndarray:
        patches = batch.tokens.patch.flatten(0, 1).cpu().numpy()
        chances = np.zeros((len(patches), num_classes))
        chances[:, fitted.classes_] = fitted.predict_proba(patches)
        return majority(chances).reshape(len(batch.images), -1)  # as the truth was decided: first whether foreground

    return Line(num_classes, label)


def scores(
    lines: dict[str, Line], center: "CenterMask", train: Iterable[Batch], val: Iterable[Batch], *, parts: bool
) -> dict[str, dict[str, dict[str, float]]]:
    """Every line's scores by level, and the center mask's: one pass over train, then one over val."""
    tallies: dict[str, PartScore] = {}
    for batch in train:
        for name, line in lines.items():
            num_classes = batch.counts.shape[2]
            tally = tallies.setdefault(name, PartScore(line.num_labels, num_classes, parts=parts))
            for labels, counts in zip(line.label(batch), batch.counts, strict=True):
                tally.add_train(labels, counts)
        for counts in batch.counts:
            center.add("train", counts)
    for batch in val:
        for name, line in lines.items():
            for labels, counts in zip(line.label(batch), batch.counts, strict=True):
                tallies[name].add_val(labels, counts)
        for counts in batch.counts:
            center.add("val", counts)
    found = {name: tally.scores() for name, tally in tallies.items()}
    found.get("perfect", {}).pop("patch", None)  # 1 by definition
    return found | {"center_mask": center.scores()}


class CenterMask:
    """One mask for every image: cells of train whose labeled pixels are foreground more often than some threshold.

    Show it train, then val, as counts of pixels per cell and true label.
    """

    def __init__(self, train_counts: Integer[np.ndarray, "n g"]) -> None:
        share = train_counts[:, 1:].sum(1) / np.maximum(train_counts.sum(1), 1)
        self.masks = (share >= THRESHOLDS[:, None]).astype(int)  # (t, n)
        self.ious: dict[str, dict[str, list]] = {split: {level: [] for level in LEVELS} for split in ("train", "val")}

    def add(self, split: str, counts: Integer[np.ndarray, "n g"]) -> None:
        """One image of train or val."""
        for level in LEVELS:
            tables = [part_metrics.contingency(mask, counts, num_labels=2, level=level) for mask in self.masks]
            ious = [part_metrics.foreground_iou(table, np.array([False, True])) for table in tables]
            if None not in ious:
                self.ious[split][level].append(ious)

    def scores(self) -> dict[str, dict[str, float]]:
        """fg_iou per level: val's mean under the threshold that is best on train."""
        best = {level: np.mean(self.ious["train"][level], axis=0).argmax() for level in LEVELS}
        return {level: {"fg_iou": float(np.mean(self.ious["val"][level], axis=0)[best[level]])} for level in LEVELS}
