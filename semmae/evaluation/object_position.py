"""How much of the part labels follows from the position on the object, without a look at the image.

A part map that only cuts the object into bands and rings has labels, too. The metric `place` exposes it: a table of
72 positions on the object predicts its labels as well as the image does. True parts follow the position in part,
because heads are mostly on top; a good part map is as predictable as they are.
"""

import numpy as np
from jaxtyping import Bool, Float, Integer

HEIGHTS, DISTANCES = 12, 6  # cells of the height, and of the horizontal distance from the middle
REACH = 2.0  # standard deviations of the foreground's positions that the cells cover; the outer cells hold the rest
SMOOTHING = 1.0  # patches that are added to each cell, with the labels of the whole table


class PositionTable:
    """Count the labels at each position on the object, separately in two halves of the images.

    Args:
        num_labels: Number of labels of the part maps.
        grid: Rows and columns of patches.
    """

    def __init__(self, num_labels: int, grid: tuple[int, int]) -> None:
        self.grid, self.num_images = grid, 0
        self.counts = np.zeros((2, HEIGHTS * DISTANCES, num_labels), np.int64)

    def update(self, labels: Integer[np.ndarray, " n"], foreground: Bool[np.ndarray, " n"]) -> None:
        """Add the foreground patches of an image. Images go to the two halves in turn."""
        if foreground.any():
            cells = object_cells(foreground, self.grid)[foreground]
            np.add.at(self.counts[self.num_images % 2], (cells, labels[foreground]), 1)
        self.num_images += 1

    def compute(self) -> float:
        """Compute `place`: the share of the labels' entropy that the position on the object explains.

        Each half of the images is measured with the table of the other half. The share is 1 - H(label | cell) /
        H(label), where both entropies are cross entropies over the foreground patches of the measured half.

        Returns:
            A share in [0, 1]; 0 if all patches have the same label.
        """
        counts = self.counts[:, :, self.counts.any((0, 1))]
        if counts.shape[2] < 2:
            return 0.0
        conditional, marginal = np.sum([cross_entropies(counts[i], counts[1 - i]) for i in range(2)], axis=0)
        return float(np.clip(1 - conditional / marginal, 0, 1))


def object_cells(foreground: Bool[np.ndarray, " n"], grid: tuple[int, int]) -> Integer[np.ndarray, " n"]:
    """Return the cell of each patch, relative to the object of its image.

    The object is the foreground of the image. Its center is the mean position of the foreground, and its extent is the
    standard deviation, at least one patch, in each direction. Left and right count as the same. The object must have a
    patch.
    """
    positions = np.argwhere(np.ones(grid)).astype(float)  # row and column of each patch
    center, extent = positions[foreground].mean(0), positions[foreground].std(0)
    height, offset = ((positions - center) / np.maximum(extent, 1)).T / REACH
    row = np.floor((height + 1) / 2 * HEIGHTS).astype(int).clip(0, HEIGHTS - 1)
    column = np.floor(np.abs(offset) * DISTANCES).astype(int).clip(0, DISTANCES - 1)
    return row * DISTANCES + column


def cross_entropies(fitted: Integer[np.ndarray, "c l"], measured: Integer[np.ndarray, "c l"]) -> tuple[float, float]:
    """Compute the cross entropies of the labels in `measured` under the frequencies in `fitted`, in nats.

    Args:
        fitted: Patches per cell and label. The frequencies of the whole table are smoothed by one patch per label, and
            those of a cell by `SMOOTHING` patches with the frequencies of the whole table.
        measured: Patches per cell and label.

    Returns:
        The sums over all patches, given the cell and without the cell.
    """
    overall: Float[np.ndarray, " l"] = (fitted.sum(0) + 1) / (fitted.sum() + fitted.shape[1])
    per_cell = (fitted + SMOOTHING * overall) / (fitted.sum(1, keepdims=True) + SMOOTHING)
    return float(-(measured * np.log(per_cell)).sum()), float(-(measured * np.log(overall)).sum())


def describe_place(parts: float, true_parts: float | None) -> str:
    """Tell `place` of part maps in words, beside `place` of the true parts if it is known."""
    truth = "" if true_parts is None else f" (true parts: {100 * true_parts:.0f} %)"
    return f"Position on the object explains {100 * parts:.0f} % of the labels{truth}."


def place_of_maps(
    maps: Integer[np.ndarray, "b n"], foreground: Bool[np.ndarray, "b n"], grid: tuple[int, int]
) -> float:
    """Compute `place` of the part maps of some images."""
    table = PositionTable(int(maps.max()) + 1, grid)
    for labels, is_foreground in zip(maps, foreground, strict=True):
        table.update(labels, is_foreground)
    return table.compute()
