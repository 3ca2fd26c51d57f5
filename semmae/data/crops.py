"""Crop images and their part maps by the same box.

The coordinates of a `Box` are relative to the size of the image. So the same box applies to an image decoded at any
scale and to a part map of any grid.
"""

import math
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64, Int64, UInt8
from PIL import Image

BORDER_TOLERANCE = 1e-9  # in cells; assigns a point on the border of two cells to the later one, despite rounding
ATTEMPTS = 10  # random boxes to try before falling back to the central one, as in torchvision


class Box(NamedTuple):
    """A crop, as fractions of the height and width of the image; `flip` mirrors the crop horizontally."""

    top: float
    left: float
    height: float
    width: float
    flip: bool

    @property
    def span(self) -> tuple[float, float, float, float]:
        """The start row, the start column, the height and the signed width of the crop.

        A flipped crop starts at its right edge and has a negative width.
        """
        if self.flip:
            return self.top, self.left + self.width, self.height, -self.width
        return self.top, self.left, self.height, self.width


FULL_IMAGE = Box(top=0.0, left=0.0, height=1.0, width=1.0, flip=False)


def random_resized_crop(
    rng: np.random.Generator, *, aspect: float, scale: tuple[float, float], ratio: tuple[float, float], flip: float
) -> Box:
    """Draw a box as torchvision's `RandomResizedCrop` does, but do not round it to pixels.

    If no attempt fits into the image, return the largest central box with an aspect ratio within `ratio`.

    Args:
        aspect: Width / height of the image.
        scale: Range of the area, as a fraction of the image area; the area is uniform.
        ratio: Range of width / height of the crop; the ratio is log-uniform.
        flip: Probability of a flip.
    """
    flipped = bool(rng.random() < flip)
    for _ in range(ATTEMPTS):
        area = rng.uniform(*scale)
        relative_ratio = math.exp(rng.uniform(*np.log(ratio))) / aspect  # of the width and height in a `Box`
        height, width = math.sqrt(area / relative_ratio), math.sqrt(area * relative_ratio)
        if height <= 1 and width <= 1:
            return Box(rng.uniform(0, 1 - height), rng.uniform(0, 1 - width), height, width, flipped)
    height, width = min(1.0, aspect / ratio[0]), min(1.0, ratio[1] / aspect)
    return Box((1 - height) / 2, (1 - width) / 2, height, width, flipped)


def snap_to_pixels(box: Box, size: tuple[int, int]) -> Box:
    """Move the edges of a box to the nearest pixels of an image of this height and width, at least one pixel apart."""
    h, w = size
    top, bottom = _pixel_range(box.top, box.height, h)
    left, right = _pixel_range(box.left, box.width, w)
    return Box(top / h, left / w, (bottom - top) / h, (right - left) / w, box.flip)


def required_size(crops: Iterable[tuple[Box, tuple[int, int]]]) -> tuple[int, int]:
    """Compute the rows and columns that an image needs so that no crop is enlarged.

    Args:
        crops: Boxes with the rows and columns that they will be resized to.
    """
    rows, columns = zip(*((h / box.height, w / box.width) for box, (h, w) in crops), strict=True)
    return math.ceil(max(rows)), math.ceil(max(columns))


def crop_image(image: UInt8[np.ndarray, "h w 3"], box: Box, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Crop an image and resize it to a square as `resize_box` does, with channels last."""
    return cv2.merge(list(resize_box(image, box, (size, size))))


def resize_box(
    image: UInt8[np.ndarray, "h w 3"], box: Box, size: tuple[int, int]
) -> UInt8[np.ndarray, "3 {size[0]} {size[1]}"]:
    """Crop an image at the nearest pixels and resize it to `size` rows and columns.

    The filter is bicubic. If a side shrinks, the filter is antialiased as in Pillow, which the original MAE uses.
    """
    top, bottom = _pixel_range(box.top, box.height, image.shape[0])
    left, right = _pixel_range(box.left, box.width, image.shape[1])
    cut = image[top:bottom, left:right]
    # OpenCV has no antialiased bicubic filter; torch is three times as fast as Pillow
    if cut.shape[0] > size[0] or cut.shape[1] > size[1]:
        channels = torch.from_numpy(cut).permute(2, 0, 1)[None]
        resized = F.interpolate(channels, size, mode="bicubic", antialias=True)[0].contiguous().numpy()
    else:
        resized = channels_first(cv2.resize(cut, size[::-1], interpolation=cv2.INTER_CUBIC))
    if box.flip:
        rows = resized.reshape(-1, size[1])
        cv2.flip(rows, 1, rows)
    return resized


def channels_first(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "3 h w"]:
    """Copy an image with its channels first. This is ten times as fast as copying the transpose."""
    copy = np.empty((3, *pixels.shape[:2]), np.uint8)
    cv2.split(pixels, list(copy))
    return copy


def resample_box(
    image: UInt8[np.ndarray, "h w 3"], box: Box, size: tuple[int, int]
) -> UInt8[np.ndarray, "{size[0]} {size[1]} 3"]:
    """Crop and resize an image with Pillow, without rounding the edges to pixels.

    This is slower than `resize_box`, but gives exactly the pixels of Pillow.
    """
    h, w = image.shape[:2]
    right, bottom = min(1, box.left + box.width) * w, min(1, box.top + box.height) * h
    edges = (box.left * w, box.top * h, right, bottom)
    pixels = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC, box=edges))
    return np.ascontiguousarray(pixels[:, ::-1]) if box.flip else pixels


def crop_part_map(
    part_map: UInt8[np.ndarray, "h w"], box: Box, grid: tuple[int, int]
) -> UInt8[np.ndarray, "{grid[0]} {grid[1]}"]:
    """Crop a part map to the patch grid of the encoder.

    Each patch gets the label of the cell that contains the center of the patch.
    """
    rows = _cells_of_centers(box.top, box.height, grid[0], part_map.shape[0])
    columns = _cells_of_centers(box.left, box.width, grid[1], part_map.shape[1])
    return part_map[np.ix_(rows, columns[::-1] if box.flip else columns)]


def crop_part_maps(
    part_maps: UInt8[np.ndarray, "k h w"],
    rows: Int64[np.ndarray, " b"],
    spans: Float64[np.ndarray, "b 4"],
    grid: tuple[int, int],
) -> UInt8[np.ndarray, "b n"]:
    """Apply `crop_part_map` to a batch of crops.

    The code is vectorized over the batch, because it runs between two training steps.

    Args:
        rows: Index of the part map of each crop.
        spans: `Box.span` of each crop.

    Returns:
        Labels of the patches, row by row of the grid.
    """
    _, h, w = part_maps.shape
    positions = np.dot(spans, _span_to_centers(grid, (h, w)))
    positions += BORDER_TOLERANCE
    cells = positions.astype(np.intp)
    y, x = cells[:, : grid[0]], cells[:, grid[0] :]
    np.minimum(y, h - 1, out=y)
    np.minimum(x, w - 1, out=x)
    y += (rows * h)[:, None]
    y *= w
    cell = y[:, :, None] + x[:, None, :]
    return part_maps.reshape(-1).take(cell.reshape(len(rows), -1))


def _pixel_range(start: float, extent: float, size: int) -> tuple[int, int]:
    """Round a box along one axis to the nearest pixels: the first pixel, and the pixel after the last one."""
    first = min(round(start * size), size - 1)
    return first, max(first + 1, min(round((start + extent) * size), size))


def _cells_of_centers(start: float, extent: float, patches: int, cells: int) -> np.ndarray:
    """Compute the index of the cell that contains the center of each patch, along one axis."""
    centers = start + extent * (np.arange(patches) + 0.5) / patches
    return np.minimum(np.floor(centers * cells + BORDER_TOLERANCE).astype(int), cells - 1)


@cache
def _span_to_centers(grid: tuple[int, int], cells: tuple[int, int]) -> Float64[np.ndarray, "4 m"]:
    """Make the matrix that maps a `Box.span` to the patch centers along both axes, in units of cells."""
    matrix = np.zeros((4, sum(grid)))
    for axis, columns in enumerate((slice(grid[0]), slice(grid[0], None))):
        matrix[axis, columns] = cells[axis]
        matrix[axis + 2, columns] = cells[axis] * (np.arange(grid[axis]) + 0.5) / grid[axis]
    return matrix
