"""One sampled box moves image and part map.

- `random_resized_crop`: sample a `Box`, a crop and a flip in coordinates relative to the image, from a generator.
- `snap_to_pixels`: the box with its edges on pixels. `required_size`: how large an image must be decoded for its boxes.
- `resize_box`: the box of an image, resized, channels first as networks take them; `crop_image`: a square, as pictures
  are; `resample_box`: as evaluations of other libraries do it; `channels_first`: channels first.
- `crop_part_map`: the same box of its part map, on the encoder's grid (or of its mask, on the pixels of the crop);
  `crop_part_maps`: of a batch.
- `FULL_IMAGE`: the box that changes nothing.

Relative coordinates fit an image decoded at any scale and a part map of any grid, whatever the teacher's resolution.
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

BORDER = 1e-9  # of a cell: what lies on the border of two is the later one's, despite rounding
ATTEMPTS = 10  # boxes to try before the central one, as in torchvision


class Box(NamedTuple):
    """A crop as shares of the image's height and width, flipped left to right afterwards if `flip`."""

    top: float
    left: float
    height: float
    width: float
    flip: bool

    @property
    def span(self) -> tuple[float, float, float, float]:
        """Where the crop begins, from the top and from the left, and how far it goes, down and to the right: a flipped
        one goes to the left.
        """
        if self.flip:
            return self.top, self.left + self.width, self.height, -self.width
        return self.top, self.left, self.height, self.width


FULL_IMAGE = Box(top=0.0, left=0.0, height=1.0, width=1.0, flip=False)


def random_resized_crop(
    rng: np.random.Generator, *, aspect: float, scale: tuple[float, float], ratio: tuple[float, float], flip: float
) -> Box:
    """A box of uniform area within `scale` (share of the image), log-uniform width / height within `ratio`, anywhere.

    `aspect` is the image's width / height, `flip` the probability of a flip. When no attempt fits into the image: the
    largest central box whose shape is within `ratio`. (torchvision's distribution without its rounding to pixels.)
    """
    flipped = bool(rng.random() < flip)
    for _ in range(ATTEMPTS):
        area = rng.uniform(*scale)
        shape = math.exp(rng.uniform(*np.log(ratio))) / aspect  # width / height in relative coordinates
        height, width = math.sqrt(area / shape), math.sqrt(area * shape)
        if height <= 1 and width <= 1:
            return Box(rng.uniform(0, 1 - height), rng.uniform(0, 1 - width), height, width, flipped)
    height, width = min(1.0, aspect / ratio[0]), min(1.0, ratio[1] / aspect)
    return Box((1 - height) / 2, (1 - width) / 2, height, width, flipped)


def snap_to_pixels(box: Box, size: tuple[int, int]) -> Box:
    """The box with its edges on the nearest pixels of an image of that height and width, a pixel apart at least."""
    (top, bottom), (left, right) = _pixels(box.top, box.height, size[0]), _pixels(box.left, box.width, size[1])
    h, w = size
    return Box(top / h, left / w, (bottom - top) / h, (right - left) / w, box.flip)


def required_size(crops: Iterable[tuple[Box, tuple[int, int]]]) -> tuple[int, int]:
    """Rows and columns of the whole image such that no box has fewer than those it will be resized to."""
    rows, columns = zip(*((h / box.height, w / box.width) for box, (h, w) in crops), strict=True)
    return math.ceil(max(rows)), math.ceil(max(columns))


def crop_image(image: UInt8[np.ndarray, "h w 3"], box: Box, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The box of the image as a picture of size x size pixels: `resize_box`, channels last."""
    return cv2.merge(list(resize_box(image, box, (size, size))))


def resize_box(
    image: UInt8[np.ndarray, "h w 3"], box: Box, size: tuple[int, int]
) -> UInt8[np.ndarray, "3 {size[0]} {size[1]}"]:
    """The box of the image, its edges on the nearest pixels, as so many rows and columns: bicubic, and where a side
    shrinks antialiased as Pillow does it (and MAE's pipeline by it).
    """
    top, bottom = _pixels(box.top, box.height, image.shape[0])
    left, right = _pixels(box.left, box.width, image.shape[1])
    cut = image[top:bottom, left:right]
    if cut.shape[0] > size[0] or cut.shape[1] > size[1]:  # a filter that OpenCV lacks; thrice as fast as Pillow's own
        channels = torch.from_numpy(cut).permute(2, 0, 1)[None]
        found = F.interpolate(channels, size, mode="bicubic", antialias=True)[0].contiguous().numpy()
    else:
        found = channels_first(cv2.resize(cut, size[::-1], interpolation=cv2.INTER_CUBIC))
    if box.flip:
        rows = found.reshape(-1, size[1])
        cv2.flip(rows, 1, rows)
    return found


def channels_first(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "3 h w"]:
    """Channels first, as networks take them; ten times as fast as a copy of the transpose."""
    found = np.empty((3, *pixels.shape[:2]), np.uint8)
    cv2.split(pixels, list(found))
    return found


def resample_box(
    image: UInt8[np.ndarray, "h w 3"], box: Box, size: tuple[int, int]
) -> UInt8[np.ndarray, "{size[0]} {size[1]} 3"]:
    """The same by Pillow, bicubic and antialiased, the edges not rounded: slower, and what libraries evaluate with."""
    h, w = image.shape[:2]
    right, bottom = min(1, box.left + box.width) * w, min(1, box.top + box.height) * h
    edges = (box.left * w, box.top * h, right, bottom)
    pixels = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC, box=edges))
    return np.ascontiguousarray(pixels[:, ::-1]) if box.flip else pixels


def crop_part_map(
    part_map: UInt8[np.ndarray, "h w"], box: Box, grid: tuple[int, int]
) -> UInt8[np.ndarray, "{grid[0]} {grid[1]}"]:
    """The label nearest to the center of each of the encoder's patches, when its grid covers the box."""
    rows = _cells(box.top, box.height, grid[0], part_map.shape[0])
    columns = _cells(box.left, box.width, grid[1], part_map.shape[1])
    return part_map[np.ix_(rows, columns[::-1] if box.flip else columns)]


def crop_part_maps(
    part_maps: UInt8[np.ndarray, "k h w"], rows: Int64[np.ndarray, " b"], spans: Float64[np.ndarray, "b 4"],
    grid: tuple[int, int],
) -> UInt8[np.ndarray, "b n"]:  # fmt: skip
    """`crop_part_map` of the maps in those rows, each by the `Box.span` of its crop, row by row of the grid. A dozen
    calls for a batch of any size: between two steps all code is cold, and each costs as much as its work.
    """
    _, h, w = part_maps.shape
    places = np.dot(spans, _centers(grid, (h, w)))
    places += BORDER
    cells = places.astype(np.intp)
    y, x = cells[:, : grid[0]], cells[:, grid[0] :]
    np.minimum(y, h - 1, out=y)
    np.minimum(x, w - 1, out=x)
    y += (rows * h)[:, None]
    y *= w
    cell = y[:, :, None] + x[:, None, :]
    return part_maps.reshape(-1).take(cell.reshape(len(rows), -1))


def _pixels(start: float, extent: float, pixels: int) -> tuple[int, int]:
    """Along one axis, the first pixel of a box and the one after its last, at least one apart."""
    first = min(round(start * pixels), pixels - 1)
    return first, max(first + 1, min(round((start + extent) * pixels), pixels))


def _cells(start: float, extent: float, patches: int, cells: int) -> np.ndarray:
    """Along one axis, the cell where each patch's center lies; on the border of two cells, the later one."""
    centers = start + extent * (np.arange(patches) + 0.5) / patches
    return np.minimum(np.floor(centers * cells + BORDER).astype(int), cells - 1)


@cache
def _centers(grid: tuple[int, int], cells: tuple[int, int]) -> Float64[np.ndarray, "4 m"]:
    """What makes of a `Box.span` where the centers of a grid's rows and columns lie, counted in cells."""
    found = np.zeros((4, sum(grid)))
    for axis, at in enumerate((slice(grid[0]), slice(grid[0], None))):
        found[axis, at] = cells[axis]
        found[axis + 2, at] = cells[axis] * (np.arange(grid[axis]) + 0.5) / grid[axis]
    return found
