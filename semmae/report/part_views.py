"""Draw the parts of the same image when it is shifted, flipped and zoomed."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import Image
from torch import Tensor

from semmae.data.crops import FULL_IMAGE
from semmae.data.transforms import load_crop
from semmae.evaluation.part_stability import ViewTransform, corresponding_patches, transform_images
from semmae.models.teacher import Teacher
from semmae.parts.truth_parts import TruthParts
from semmae.report import overlays
from semmae.report.figures import TILE
from semmae.report.palettes import make_palette
from semmae.report.part_labels import LabeledImages
from semmae.report.picture_grid import arrange_grid

TITLES = ("image", "shifted", "flipped", "zoomed")
SHIFT, ZOOM = 1.5, 1.25  # patches to the right; factor
NOTE = (
    f"Each picture has its own part map. It is shifted by {SHIFT} patches, flipped, or zoomed by {ZOOM}. The "
    "percentages are the shares of patches that keep their part, among the patches that are inside both pictures and "
    "not background in the first one."
)


@dataclass(frozen=True)
class ViewRow:
    """An image and its views, each with its own part map.

    Attributes:
        pictures: A picture for each of TITLES, colored by its parts.
        kept: The share of patches that keep their label, for each of TITLES after the first. None if no patch counts.
    """

    pictures: list[UInt8[np.ndarray, "t t 4"]]
    kept: list[float | None]


def view_transforms(patch_size: float) -> list[ViewTransform]:
    """Return the moves of TITLES, for an image with patches of `patch_size` pixels."""
    return [
        ViewTransform(),
        ViewTransform(right=SHIFT * patch_size),
        ViewTransform(flip=True),
        ViewTransform(zoom=ZOOM),
    ]


@torch.no_grad()
def view_rows(labeled: LabeledImages, teacher: Teacher, *, count: int, colors: str) -> list[ViewRow]:
    """Draw the views of the first `count` images; of none if the part method needs masks, which views do not have.

    Args:
        labeled: The images.
        teacher: The teacher of their part method.
        count: The maximum number of images.
        colors: The name of a palette.
    """
    method, rows = labeled.method, []
    if isinstance(method, TruthParts):
        return []
    img_size, palette = method.config["img_size"], make_palette(colors, method.num_parts)
    for index in range(min(count, len(labeled.reader))):
        labels = method.assign(teacher.encode(_load_views(labeled, index, img_size))).argmax(1).numpy()
        drawn = _load_views(labeled, index, max(img_size, TILE)).permute(0, 2, 3, 1).numpy()
        height, width = labeled.reader.size(index)
        pictures = [  # views are squares, as the teacher sees them; pictures have the shape of the image
            overlays.whole_square(
                cv2.resize(view, (width, height)), TILE,
                labels=map_.reshape(method.grid).astype(np.uint8), colors=palette,
            )
            for view, map_ in zip(drawn, labels, strict=True)
        ]  # fmt: skip
        transforms = view_transforms(img_size / method.grid[0])[1:]
        kept = [
            kept_share(labels[0], view, transform, grid=method.grid, img_size=img_size, background=method.background)
            for view, transform in zip(labels[1:], transforms, strict=True)
        ]
        rows.append(ViewRow(pictures, kept))
    return rows


def _load_views(labeled: LabeledImages, index: int, size: int) -> UInt8[Tensor, "v 3 {size} {size}"]:
    image = torch.from_numpy(load_crop(labeled.reader, index, FULL_IMAGE, size))
    transforms = view_transforms(size / labeled.method.grid[0])
    return transform_images(image.expand(len(transforms), -1, -1, -1), transforms)


def kept_share(
    image: Integer[np.ndarray, " n"],
    view: Integer[np.ndarray, " n"],
    transform: ViewTransform,
    *,
    grid: tuple[int, int],
    img_size: int,
    background: int | None,
) -> float | None:
    """Return the share of an image's patches that keep their label in a view.

    A patch counts if it is inside both pictures and is not background in the image. None if no patch counts.
    """
    indices, counts = corresponding_patches(transform, grid, img_size)
    counts = counts & (image != background)
    return float((image == view[indices])[counts].mean()) if counts.any() else None


def views_grid(labeled: LabeledImages, teacher: Teacher, *, count: int, colors: str) -> Image.Image:
    """Arrange `view_rows`, each below the shares of patches that keep their part.

    Raises:
        ValueError: The part method needs masks.
    """
    rows = view_rows(labeled, teacher, count=count, colors=colors)
    if not rows:
        raise ValueError("the part method is truth, which cannot label views of an image; choose another parts.method")
    captions = []
    for row in rows:
        kept = zip(TITLES[1:], row.kept, strict=True)
        shares = ", ".join(f"{title} {'–' if share is None else f'{share:.0%}'}" for title, share in kept)
        captions.append(f"patches that keep their part: {shares}")
    return arrange_grid([row.pictures for row in rows], TITLES, captions=captions, notes=[NOTE])
