"""Draw heat maps of parts: the probability of each label at each patch.

Part maps hold only the most probable label of a patch, so the probabilities are computed again (`part_labels`).
"""

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from semmae.data.dataset import Reader
from semmae.models.teacher import Teacher
from semmae.parts.part_method import PartMethod
from semmae.report import figures, overlays
from semmae.report.palettes import GRAY, make_palette
from semmae.report.part_labels import label_probabilities
from semmae.report.picture_grid import arrange_grid

NOTE = "The stronger the color, the more probable the label at this place; in dark gray places, its probability is 0."


def heat_map(
    picture: UInt8[np.ndarray, "H W 3"], probability: Float[np.ndarray, "h w"], *, color: UInt8[np.ndarray, "3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Convert the picture to dark gray, and add `color` in proportion to the probability.

    The probability is interpolated between the centers of patches.
    """
    luma = (picture @ overlays.LUMA)[:, :, None]
    weight = cv2.resize(probability.astype(np.float32), picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    weight = weight[:, :, None]
    return ((0.4 + 0.1 * weight) * luma + 0.5 * weight * color).round().astype(np.uint8)


def heat_grid(
    reader: Reader, teacher: Teacher, method: PartMethod, *, count: int, seed: int, colors: str
) -> Image.Image:
    """Draw a row per image: its center square, then the heat map of every label."""
    reader = reader.select(figures.choose_images(len(reader), count=count, seed=seed))
    label_colors = np.vstack([make_palette(colors, method.num_parts), GRAY]).astype(np.uint8)
    names = [f"part {part}" for part in range(method.num_parts)] + ["background"] * (method.background is not None)
    rows = []
    for i, probabilities in enumerate(label_probabilities(reader, teacher, method)):
        image, patch_maps = reader.image(i), probabilities.reshape(len(names), *method.grid)
        drawn = [heat_map(image, map_, color=color) for map_, color in zip(patch_maps, label_colors, strict=False)]
        rows.append([overlays.crop_square(picture, figures.TILE) for picture in (image, *drawn)])
    return arrange_grid(rows, ["image", *names], notes=[NOTE])
