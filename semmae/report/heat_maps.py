"""Draw heat maps of parts: the probability of each label at each patch.

Part maps hold only the most probable label of a patch. This module computes the probabilities with the teacher and the
part method.
"""

import cv2
import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from PIL import Image

from semmae.data.crops import crop_image
from semmae.data.dataset import Reader
from semmae.data.loader import batches
from semmae.models import vit
from semmae.models.teacher import Teacher
from semmae.parts.part_method import PartMethod
from semmae.report import figures, overlays
from semmae.report.palettes import GRAY, make_palette


@torch.no_grad()
def label_probabilities(
    reader: Reader, indices: Integer[np.ndarray, " b"], teacher: Teacher, method: PartMethod
) -> Float[np.ndarray, "b p n"]:
    """Compute the probability of each label (p; the background is last) at each patch (n) of the whole images."""
    vit.use_fastest_attention(teacher, torch.device("cpu"), frozen_grid=method.config["grid"])
    loader = batches(reader, indices, method.view(reader), batch_size=32, workers=0)
    encode = teacher.encode
    return torch.cat([method.assign(encode(batch["image"]), batch.get("counts")) for batch in loader]).numpy()


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
    indices = figures.choose_images(len(reader), count=count, seed=seed)
    label_colors = np.vstack([make_palette(colors, method.num_parts), GRAY]).astype(np.uint8)
    names = [f"part {part}" for part in range(method.num_parts)] + ["background"] * (method.background is not None)
    rows = []
    for i, probabilities in zip(indices, label_probabilities(reader, indices, teacher, method), strict=True):
        image, patch_maps = reader.image(i), probabilities.reshape(len(names), *method.grid)
        drawn = [heat_map(image, map_, color=color) for map_, color in zip(patch_maps, label_colors, strict=False)]
        box = overlays.center_square(*image.shape[:2])
        rows.append([crop_image(picture, box, figures.TILE) for picture in (image, *drawn)])
    return figures.arrange_grid(rows, ["image", *names])
