"""Draw on single images: parts in color, masked patches, and typical regions of a part.

Masked patches and the surroundings of a region are transparent, so that they fit light and dark pages.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from semmae.data.crops import FULL_IMAGE, Box, crop_image, crop_part_map, resize_box

LUMA = np.array([0.299, 0.587, 0.114])
MASKED = (128, 128, 128, 46)  # RGBA of a masked patch without a part


def center_square(height: int, width: int) -> Box:
    """Return the largest square in the center of an image of `height` by `width` pixels."""
    side = min(height, width)
    box_height, box_width = side / height, side / width
    return Box((1 - box_height) / 2, (1 - box_width) / 2, box_height, box_width, flip=False)


def crop_square(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Return the center square of an image."""
    return crop_image(image, center_square(*image.shape[:2]), size)


def color_square(
    image: UInt8[np.ndarray, "H W 3"], labels: UInt8[np.ndarray, "h w"], size: int, *, colors: UInt8[np.ndarray, "p 3"]
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Return the center square of an image, colored by its part map or mask as in `color_labels`."""
    square = crop_part_map(labels, center_square(*image.shape[:2]), (size, size))
    return color_labels(crop_square(image, size), square, colors=colors)


def whole_square(
    image: UInt8[np.ndarray, "H W 3"],
    size: int,
    *,
    labels: UInt8[np.ndarray, "h w"] | None = None,
    colors: UInt8[np.ndarray, "p 3"] | None = None,
) -> UInt8[np.ndarray, "{size} {size} 4"]:
    """Fit a whole image into a square with transparent margins; with `labels`, color it as in `color_labels`."""
    scale = size / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    picture = resize_box(image, FULL_IMAGE, (height, width)).transpose(1, 2, 0)
    if labels is not None and colors is not None:
        picture = color_labels(picture, crop_part_map(labels, FULL_IMAGE, (height, width)), colors=colors)
    out = np.zeros((size, size, 4), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    out[top : top + height, left : left + width] = np.dstack([picture, np.full((height, width), 255, np.uint8)])
    return out


def color_labels(
    picture: UInt8[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"], *, colors: UInt8[np.ndarray, "p 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Color a picture by its labels, with thin white lines between them.

    Args:
        picture: RGB pixels.
        labels: The label of each pixel. Pixels with labels from `len(colors)` on (the background) become pale.
        colors: The RGB color of each label.
    """
    luma = (picture @ LUMA)[:, :, None]
    colored = 0.42 * luma + 0.58 * colors[np.minimum(labels, len(colors) - 1)]
    pale = 0.5 * picture + 0.2 * luma + 0.3 * 255  # keeps the hue
    out = np.where((labels < len(colors))[:, :, None], colored, pale)
    out[_borders(labels)] = 255
    return out.round().clip(0, 255).astype(np.uint8)


def hide_masked(
    picture: UInt8[np.ndarray, "t t 3"],
    mask: Bool[np.ndarray, "h w"],
    *,
    tint: UInt8[np.ndarray, "h w 4"] | None = None,
) -> UInt8[np.ndarray, "t t 4"]:
    """Replace the masked patches of a picture by `tint` (RGBA per patch; default: a transparent gray)."""
    fill = np.broadcast_to(np.array(MASKED, np.uint8), (*mask.shape, 4)) if tint is None else tint
    size = picture.shape[:2][::-1]
    hidden = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT)[:, :, None]
    fill = cv2.resize(np.ascontiguousarray(fill), size, interpolation=cv2.INTER_NEAREST_EXACT)
    return np.where(hidden, fill, np.dstack([picture, np.full_like(hidden, 255)]))


def part_tints(
    part_map: UInt8[np.ndarray, "b n"], *, grid: tuple[int, int], colors: UInt8[np.ndarray, "p 3"]
) -> UInt8[np.ndarray, "b h w 4"]:
    """Return the `tint` argument of `hide_masked`: each patch in the transparent color of its part."""
    rgba = np.vstack([np.pad(colors, ((0, 0), (0, 1)), constant_values=92), [MASKED]]).astype(np.uint8)
    return rgba[np.minimum(part_map, len(colors))].reshape(-1, *grid, 4)


def most_typical(probabilities: Float[np.ndarray, "b p n"], *, count: int) -> list[list[int]]:
    """Find the images that show each label best.

    The score of an image is sum(p) / (m + m_median / 2). The sum is over the m patches for which the label is the most
    probable one, and p is its probability. m_median is the median of m over the images with m > 0. It lowers the score
    of images with few such patches.

    Args:
        probabilities: The probability of each label (p) for each patch (n) of each image (b).
        count: The maximum number of images per label.

    Returns:
        For each label, the indices of images, the best first. Images without the label are left out.
    """
    ranked = []
    for label, probability in enumerate(probabilities.transpose(1, 0, 2)):
        is_label = probabilities.argmax(1) == label
        size = is_label.sum(1)
        median_size = np.median(size[size > 0]) if size.any() else 1
        score = (probability * is_label).sum(1) / (size + median_size / 2)
        ranked.append([int(i) for i in np.argsort(-score, kind="stable")[:count] if size[i]])
    return ranked


def crop_region(
    image: UInt8[np.ndarray, "H W 3"], patches: Bool[np.ndarray, "h w"], *, size: int, color: UInt8[np.ndarray, "3"]
) -> UInt8[np.ndarray, "{size} {size} 4"]:
    """Crop a square around the largest connected region of `patches`, outline it, and make its surroundings pale."""
    _, regions, stats, _ = cv2.connectedComponentsWithStats(patches.astype(np.uint8), connectivity=4)
    largest = 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    left, top, width, height = stats[largest, :4]
    box = _square_around(image.shape[:2], patches.shape, (top, left, height, width))
    inside = crop_part_map((regions == largest).astype(np.uint8), box, (size, size))
    pixels = crop_image(image, box, size)
    luma = (pixels @ LUMA).round().astype(np.uint8)
    outside = np.dstack([luma, luma, luma, np.full_like(luma, 110)])
    out = np.where(inside[:, :, None] > 0, np.dstack([pixels, np.full_like(luma, 255)]), outside)
    out[_borders(inside, width=max(2, size // 42))] = (*color, 255)
    return out


def _borders(labels: UInt8[np.ndarray, "h w"], *, width: int = 2) -> Bool[np.ndarray, "h w"]:
    """Return a mask of the lines between different labels, `width` pixels wide."""
    kernel = np.ones((width, width), np.uint8)
    return cv2.dilate(labels, kernel) != cv2.erode(labels, kernel)


def _square_around(image_size: tuple[int, int], grid: tuple[int, int], rectangle: tuple[int, int, int, int]) -> Box:
    """Return a square in the image around a rectangle of patches (top, left, height, width).

    The square has a margin of one patch. Its side is at least half the short side of the image.
    """
    patch = np.array(image_size) / grid
    corner, extent = np.array(rectangle[:2]) * patch, np.array(rectangle[2:]) * patch
    side = min(max(extent.max() + 2 * patch.max(), min(image_size) / 2), min(image_size))
    start = (corner + extent / 2 - side / 2).clip(0, np.array(image_size) - side)
    (top, left), (height, width) = start / image_size, side / np.array(image_size)
    return Box(float(top), float(left), float(height), float(width), flip=False)
