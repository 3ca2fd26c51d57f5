"""The samples of a dataset that have segmentation masks."""

from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8

from semmae.data.dataset import Reader
from semmae.data.patch_masks import cell_counts

POSITION_GRID = (32, 32)  # rows and columns of cells of the position baseline


def open_masked_split(dataset: Path, split: str) -> tuple[Reader, Integer[np.ndarray, "n g"]]:
    """Open the samples of a split that have masks.

    Returns:
        The samples, and the number of pixels of each class (columns) in each cell of POSITION_GRID (rows), summed over
        the samples.

    Raises:
        ValueError: The dataset has no masks, or all pixels of the masks are ignored.
    """
    reader = Reader(dataset, split)
    if reader.mask_kind is None:
        raise ValueError(f"{dataset} has no masks; segment needs a dataset whose sources have `masks` in params.yaml")
    counts = np.zeros((POSITION_GRID[0] * POSITION_GRID[1], len(reader.mask_names)), np.int64)
    masked = []
    for index in range(len(reader)):
        mask = reader.mask(index)
        if mask is not None:
            counts += cell_counts(mask, grid=POSITION_GRID, num_classes=len(reader.mask_names))
            masked.append(index)
    if not counts.any():
        raise ValueError(f"{dataset}: no mask of {split} has a labeled pixel. Choose another dataset in params.yaml")
    return reader.select(np.array(masked)), counts


def read_mask(reader: Reader, index: int) -> UInt8[np.ndarray, "h w"]:
    """Read the mask of a sample that has one."""
    mask = reader.mask(index)
    assert mask is not None, f"{reader.keys[index]} has no mask; select with open_masked_split"
    return mask
