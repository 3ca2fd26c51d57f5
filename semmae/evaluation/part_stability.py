"""Measure whether patches keep their labels when an image is shifted, flipped or zoomed.

A view is the same square image, moved. Areas that the move uncovers are filled by reflection; they are not measured.
A patch of the image corresponds to the patch of the view in which its center lies. A pair of patches counts if the
content of both patches is inside both pictures.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor
from torch.nn import functional

from semmae.evaluation.part_evaluation import LabelerScores, PartBatch

NUM_IMAGES = 200  # of val, spread evenly; more images change the metrics by less than their differences
TOLERANCE = 1e-6  # pixels


class ViewTransform(NamedTuple):
    """A move of a square image. Positions are in pixels, relative to the center of the image.

    A point (y, x) moves to (zoom * y + down, zoom * x + right), or with `flip` to (zoom * y + down, right - zoom * x).
    """

    down: float = 0.0
    right: float = 0.0
    zoom: float = 1.0
    flip: bool = False

    @property
    def scale(self) -> Float[np.ndarray, "2"]:
        return np.array([self.zoom, -self.zoom if self.flip else self.zoom])

    def move(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Return where points of the image are in the view."""
        return points * self.scale + (self.down, self.right)

    def move_back(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Return where points of the view are in the image."""
        return (points - (self.down, self.right)) / self.scale


SHIFTS = (8, 11, 14, 16, 21, 24)  # pixels; with patches of 8, 14 or 16 pixels some are multiples of a patch
DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1))
ZOOMS = (0.8, 0.9, 1.1, 1.25)
VIEWS = {  # each metric with its views; image i gets view i modulo their number
    "stable_shift": [ViewTransform(down * size, right * size) for size, (down, right) in product(SHIFTS, DIRECTIONS)],
    "stable_flip": [ViewTransform(flip=True)],
    "stable_zoom": [ViewTransform(zoom=zoom) for zoom in ZOOMS],
}  # fmt: skip


def measure_stability(
    labelers: Mapping[str, LabelerScores],
    batches: Iterable[PartBatch],
    encode_view: Callable[[PartBatch, UInt8[Tensor, "b 3 s s"]], PartBatch],
    *,
    grid: tuple[int, int],
) -> dict[str, dict[str, float]]:
    """Compute the share of the found foreground patches that keep their label in a view.

    Args:
        labelers: Labelers by name, after `evaluate_labelers`.
        batches: The images.
        encode_view: Returns a batch with other images in place of its own.
        grid: Rows and columns of patches.

    Returns:
        By name, the metrics `stable_shift`, `stable_flip` and `stable_zoom`. A metric is 0 if no pair of patches
        counts.
    """
    kept = {name: dict.fromkeys(VIEWS, 0) for name in labelers}
    total = {name: dict.fromkeys(VIEWS, 0) for name in labelers}
    start = 0
    for batch in batches:
        labels = {name: scores.labeler.label(batch) for name, scores in labelers.items()}
        for metric, views in VIEWS.items():
            transforms = [views[(start + i) % len(views)] for i in range(len(batch.images))]
            view = encode_view(batch, transform_images(batch.images, transforms))
            pairs = [corresponding_patches(transform, grid, batch.images.shape[-1]) for transform in transforms]
            indices, counts = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
            for name, scores in labelers.items():
                same = labels[name] == np.take_along_axis(scores.labeler.label(view), indices, axis=1)
                counted = counts & scores.object_labels[labels[name]]
                kept[name][metric] += int((same & counted).sum())
                total[name][metric] += int(counted.sum())
        start += len(batch.images)
    return {name: {metric: kept[name][metric] / max(total[name][metric], 1) for metric in VIEWS} for name in labelers}


def transform_images(images: UInt8[Tensor, "b 3 s s"], transforms: list[ViewTransform]) -> UInt8[Tensor, "b 3 s s"]:
    """Return the view of each image, with bilinear interpolation. Shifts by whole pixels and flips are exact."""
    half = images.shape[-1] / 2
    thetas = []
    for transform in transforms:  # rows: where x and y of the view come from, in units of half a side
        (y, x), (scale_y, scale_x) = transform.move_back(np.zeros((1, 2)))[0] / half, 1 / transform.scale
        thetas.append([[scale_x, 0, x], [0, scale_y, y]])
    theta = torch.tensor(thetas, dtype=torch.float32, device=images.device)
    points = functional.affine_grid(theta, list(images.shape), align_corners=False)
    sampled = functional.grid_sample(images.float(), points, padding_mode="reflection", align_corners=False)
    return sampled.round().clamp(0, 255).to(torch.uint8)


def corresponding_patches(
    transform: ViewTransform, grid: tuple[int, int], img_size: int
) -> tuple[Integer[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Find the patch of the view that corresponds to each patch of the image.

    Returns:
        The index of the patch in the view, and whether the content of both patches is inside both pictures.
    """
    size, half = img_size / np.array(grid), img_size / 2
    centers = (np.argwhere(np.ones(grid)) + 0.5) * size - half
    moved = transform.move(centers)
    cells = np.floor((moved + half) / size + TOLERANCE).astype(int).clip(0, np.array(grid) - 1)
    back = transform.move_back((cells + 0.5) * size - half)
    is_inside = np.abs(moved) + transform.zoom * size / 2 <= half + TOLERANCE
    is_inside &= np.abs(back) + size / 2 / transform.zoom <= half + TOLERANCE
    return cells[:, 0] * grid[1] + cells[:, 1], is_inside.all(1)
