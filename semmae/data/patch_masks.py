"""Masks at the resolution of patches: the counts of labels in each patch, and the majority label."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Integer, Num, UInt8

from semmae.data.crops import FULL_IMAGE
from semmae.data.dataset import Reader
from semmae.data.decoding import IGNORE
from semmae.data.transforms import load_crop


@dataclass(frozen=True)
class WholeView:
    """The whole image, resized without a crop, and the counts of mask labels in each cell of a grid."""

    img_size: int
    grid: tuple[int, int]
    num_classes: int

    def __call__(self, reader: Reader, index: int) -> dict[str, Any]:
        return {"image": load_crop(reader, index, FULL_IMAGE, self.img_size), "counts": self.counts(reader, index)}

    def counts(self, reader: Reader, index: int) -> Integer[np.ndarray, "n g"]:
        """Count the pixels of each label (columns) in each cell (rows); the sample must have a mask."""
        mask = reader.mask(index)
        assert mask is not None, f"{reader.keys[index]} has no mask; select with open_masked_splits"
        return cell_counts(mask, grid=self.grid, num_classes=self.num_classes)


def cell_counts(
    mask: UInt8[np.ndarray, "H W"], *, grid: tuple[int, int], num_classes: int
) -> Integer[np.ndarray, "n g"]:
    """Count the pixels of each true label in each patch. A pixel belongs to the patch that contains its center.

    Args:
        mask: Labels from 0, the background, to `num_classes - 1`, and `IGNORE`.
        grid: Rows and columns of patches.
        num_classes: Number of labels, background included.

    Returns:
        Counts for each patch (row-major order) and label.

    Raises:
        ValueError: The mask holds a label that is out of range.
    """
    height, width = mask.shape
    rows = (2 * np.arange(height) + 1) * grid[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * grid[1] // (2 * width)
    labeled = mask != IGNORE
    if (unknown := mask[labeled & (mask >= num_classes)]).size:
        raise ValueError(
            f"a mask holds the label {unknown[0]}; expected 0 to {num_classes - 1} (the dataset names {num_classes} "
            "labels), or 255 to ignore a pixel. Correct the mask and run dvc repro"
        )
    cells = rows[:, None] * grid[1] + columns
    flat = np.bincount((cells * num_classes + mask)[labeled], minlength=grid[0] * grid[1] * num_classes)
    return flat.reshape(-1, num_classes)


def majority_labels(counts: Num[np.ndarray, "*n g"]) -> Integer[np.ndarray, "*n"]:
    """Return the true label of each patch in two steps.

    A patch is foreground if most of its pixels are foreground. The label of a foreground patch is its largest part.
    With these two steps, the foreground does not depend on the number of parts. On a tie, the lower label wins.

    Args:
        counts: Pixels or probabilities per patch and label; label 0 is the background.

    Returns:
        One label per patch, `IGNORE` for a patch without labeled pixels.
    """
    foreground = counts[..., 1:].sum(-1) > counts[..., 0]
    return np.where(counts.any(-1), np.where(foreground, 1 + counts[..., 1:].argmax(-1), 0), IGNORE)
