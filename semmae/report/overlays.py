"""What is laid over an image to show its patches: parts in color, masks, the region where a part is found best.

- `overlay`: the parts in color. `masked`: an image without its masked patches; `tints`: what these leave behind.
- `typical`, `region`: where a part is found best, cut out of its image.

Pictures with something left out are RGBA, so that they lie well on light and dark pages.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from semmae.data.crops import Box, crop_image, crop_part_map

LUMA = np.array([0.299, 0.587, 0.114])
HIDDEN = (128, 128, 128, 46)  # RGBA of a masked patch whose part is not told


def overlay(
    picture: UInt8[np.ndarray, "t t 3"], labels: UInt8[np.ndarray, "t t"], *, colors: UInt8[np.ndarray, "p 3"]
) -> UInt8[np.ndarray, "t t 3"]:
    """Label k in colors[k], labels beyond them (the background) only paler; thin white lines between labels."""
    luma = (picture @ LUMA)[:, :, None]
    colored = 0.42 * luma + 0.58 * colors[np.minimum(labels, len(colors) - 1)]
    paler = 0.5 * picture + 0.2 * luma + 0.3 * 255  # the same hue
    out = np.where((labels < len(colors))[:, :, None], colored, paler)
    out[_borders(labels)] = 255
    return out.round().clip(0, 255).astype(np.uint8)


def masked(
    picture: UInt8[np.ndarray, "t t 3"],
    mask: Bool[np.ndarray, "h w"],
    *,
    tint: UInt8[np.ndarray, "h w 4"] | None = None,
) -> UInt8[np.ndarray, "t t 4"]:
    """The picture with masked patches all but transparent, in the colors of `tint` where it is given."""
    fill = np.broadcast_to(np.array(HIDDEN, np.uint8), (*mask.shape, 4)) if tint is None else tint
    size = picture.shape[:2][::-1]
    hidden = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT)[:, :, None]
    fill = cv2.resize(np.ascontiguousarray(fill), size, interpolation=cv2.INTER_NEAREST_EXACT)
    return np.where(hidden, fill, np.dstack([picture, np.full_like(hidden, 255)]))


def tints(
    part_map: UInt8[np.ndarray, "b n"], *, grid: tuple[int, int], colors: UInt8[np.ndarray, "p 3"]
) -> UInt8[np.ndarray, "b h w 4"]:
    """What masked patches leave behind: a breath of the color of their part."""
    rgba = np.vstack([np.pad(colors, ((0, 0), (0, 1)), constant_values=92), [HIDDEN]]).astype(np.uint8)
    return rgba[np.minimum(part_map, len(colors))].reshape(-1, *grid, 4)


def typical(shares: Float[np.ndarray, "b p n"], *, count: int) -> list[list[int]]:
    """For each label the images where it is found best: of a good size and sure of its patches, the best first.

    The score is the label's mean share of the patches it wins, shrunk by half a usual region, so that a single sure
    patch is not the best example. Images without the label are never among them.
    """
    best = []
    for label, share in enumerate(shares.transpose(1, 0, 2)):
        wins = shares.argmax(1) == label
        size = wins.sum(1)
        usual = np.median(size[size > 0]) if size.any() else 1
        score = (share * wins).sum(1) / (size + usual / 2)
        best.append([int(i) for i in np.argsort(-score, kind="stable")[:count] if size[i]])
    return best


def region(
    image: UInt8[np.ndarray, "H W 3"], found: Bool[np.ndarray, "h w"], *, size: int, color: UInt8[np.ndarray, "3"]
) -> UInt8[np.ndarray, "{size} {size} 4"]:
    """A square around the largest connected piece of `found`, outlined, its surroundings pale."""
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(found.astype(np.uint8), connectivity=4)
    piece = 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    left, top, width, height = stats[piece, :4]
    box = _square_around(image.shape[:2], found.shape, (top, left, height, width))
    inside = crop_part_map((pieces == piece).astype(np.uint8), box, (size, size))
    pixels = crop_image(image, box, size)
    luma = (pixels @ LUMA).round().astype(np.uint8)
    outside = np.dstack([luma, luma, luma, np.full_like(luma, 90)])
    out = np.where(inside[:, :, None] > 0, np.dstack([pixels, np.full_like(luma, 255)]), outside)
    out[_borders(inside, width=max(2, size // 42))] = (*color, 255)
    return out


def _borders(labels: UInt8[np.ndarray, "t t"], *, width: int = 2) -> Bool[np.ndarray, "t t"]:
    """Pixels within a line of `width` pixels between different labels."""
    kernel = np.ones((width, width), np.uint8)
    return cv2.dilate(labels, kernel) != cv2.erode(labels, kernel)


def _square_around(pixels: tuple[int, int], cells: tuple[int, int], where: tuple[int, int, int, int]) -> Box:
    """The square of the image around a rectangle (top, left, height, width) of cells: a cell of air, not too small."""
    cell = np.array(pixels) / cells
    corner, extent = np.array(where[:2]) * cell, np.array(where[2:]) * cell
    side = min(max(extent.max() + 2 * cell.max(), min(pixels) / 3), min(pixels))
    start = (corner + extent / 2 - side / 2).clip(0, np.array(pixels) - side)
    (top, left), (height, width) = start / pixels, side / np.array(pixels)
    return Box(float(top), float(left), float(height), float(width), flip=False)
