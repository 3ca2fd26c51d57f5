"""The legend of exported parts: a table and a picture of the color, the size and typical regions of each label."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8
from PIL import Image

from semmae.data.dataset import ImageSequence
from semmae.report import overlays
from semmae.report.palettes import GRAY, make_palette
from semmae.report.part_pictures import REGION_SIZE
from semmae.report.picture_grid import arrange_grid

NUM_REGIONS = 8  # per label


def label_colors(colors: str, num_parts: int, *, background: int | None) -> UInt8[np.ndarray, "p 3"]:
    """Return the color of every label: those of a palette, and gray for the background."""
    parts = make_palette(colors, num_parts)
    return parts if background is None else np.vstack([parts, GRAY]).astype(np.uint8)


def legend_table(names: list[str], palette: UInt8[np.ndarray, "p 3"], shares: Float[np.ndarray, "n p"]) -> pd.DataFrame:
    """Return a row for each label.

    Args:
        names: The name of each label.
        palette: The color of each label.
        shares: The share of each label in the area of each image.

    Returns:
        The columns label, name, color, share (of the area of all images) and images (the share of images with it).
    """
    return pd.DataFrame({
        "label": range(len(names)),
        "name": names,
        "color": [f"#{bytes(color).hex()}" for color in palette.tolist()],
        "share": shares.mean(0),
        "images": (shares > 0).mean(0),
    })  # fmt: skip


def draw_legend(
    table: pd.DataFrame,
    images: ImageSequence,
    sample: Mapping[int, Float[np.ndarray, "p n"]],
    *,
    grid: tuple[int, int],
) -> Image.Image:
    """Draw a row for each label: its color, and its most typical regions, each from another image.

    Args:
        table: The result of `legend_table`.
        images: All images.
        sample: The probability of each label in each patch, for the indices of the images to take regions from.
        grid: Rows and columns of patches.
    """
    indices, probabilities = list(sample), np.stack(list(sample.values()))
    maps, rows, captions = probabilities.argmax(1), [], []
    typical = overlays.most_typical(probabilities, count=NUM_REGIONS)
    for row in table.itertuples():
        color = np.array(list(bytes.fromhex(row.color[1:])), np.uint8)
        swatch = np.broadcast_to(np.append(color, np.uint8(255)), (REGION_SIZE, REGION_SIZE, 4))
        regions = [
            overlays.crop_region(
                images.image(indices[number], at_least=(2 * REGION_SIZE, 2 * REGION_SIZE)),
                maps[number].reshape(grid) == row.label,
                size=REGION_SIZE,
                color=color,
            )
            for number in typical[row.label]
        ]
        rows.append([np.ascontiguousarray(swatch), *regions])
        captions.append(
            f"label {row.label} ({row.name}): {row.share:.1%} of the area, in {row.images:.0%} of the images"
        )
    return arrange_grid(rows, captions=captions)
