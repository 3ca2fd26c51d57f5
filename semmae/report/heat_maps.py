"""How sure parts are: each patch's share of every label, and pictures of it, a heat map for each label.

Part maps keep the winner of each patch alone; the shares need the teacher and the parts themselves.
"""

import cv2
import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from PIL import Image

from semmae.data.crops import crop_image
from semmae.data.dataset import Reader
from semmae.data.loader import batches
from semmae.data.transforms import Whole
from semmae.models import vit
from semmae.models.teacher import Teacher
from semmae.parts.part_learner import PartMethod
from semmae.report import figures, overlays
from semmae.report.palettes import GRAY, palette


@torch.no_grad()
def shares(
    reader: Reader, ids: Integer[np.ndarray, " b"], elder: Teacher, learner: PartMethod
) -> Float[np.ndarray, "b p n"]:
    """Each patch's share of every label (they sum to 1), the background last, of whole images."""
    vit.use_fastest_attention(elder, torch.device("cpu"), frozen_at=learner.config["grid"])
    view = Whole(learner.config["img_size"], seed=0, flip=0.0)
    loader = batches(reader, ids, view, batch_size=32, workers=0)
    return torch.cat([learner.assign(elder.encode(batch["image"])) for batch in loader]).numpy()


def heat(
    picture: UInt8[np.ndarray, "H W 3"], share: Float[np.ndarray, "h w"], *, color: UInt8[np.ndarray, "3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture in dark gray, towards `color` as far as the share goes, smoothly from patch to patch."""
    luma = (picture @ overlays.LUMA)[:, :, None]
    weight = cv2.resize(share.astype(np.float32), picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)[:, :, None]
    return ((0.4 + 0.1 * weight) * luma + 0.5 * weight * color).round().astype(np.uint8)


def heat_grid(
    reader: Reader, elder: Teacher, learner: PartMethod, *, count: int, seed: int, colors: str
) -> Image.Image:
    """An image to a row: its central square, then the heat map of every label."""
    ids = figures.choose(len(reader), count=count, seed=seed)
    tones = np.vstack([palette(colors, learner.num_parts), GRAY]).astype(np.uint8)
    names = [f"part {part}" for part in range(learner.num_parts)] + ["background"] * (learner.background is not None)
    rows = []
    for i, found in zip(ids, shares(reader, ids, elder, learner), strict=True):
        image, maps = reader.image(i), found.reshape(len(names), *learner.grid)
        pictures = [image, *(heat(image, share, color=tone) for share, tone in zip(maps, tones, strict=False))]
        box = figures.central(*image.shape[:2])
        rows.append([crop_image(picture, box, figures.TILE) for picture in pictures])
    return figures.sheet(rows, ["image", *names])
