"""Draw what parts mean: images beside their parts, and the typical regions of each part.

Clusters and true labels have the colors of the parts that they overlap most, so that pictures can be compared.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from semmae.report import overlays
from semmae.report.figures import TILE
from semmae.report.palettes import GRAY, make_palette
from semmae.report.part_labels import UNCOLORED, LabeledImages
from semmae.report.picture_grid import arrange_grid

REGION_SIZE, NUM_REGIONS = 168, 12  # side of a region in pixels; regions per part
PARTS_NOTE = (
    "Each patch has the color of its part; the background is pale. Clusters of plain k-means and true labels are "
    "matched with parts one to one, by overlap, and have the colors of these parts."
)
REGIONS_NOTE = (
    "Each region is outlined, and its surroundings are gray. No two regions of a part are from the same image."
)
NUM_TRUE_LABELS = 2  # true labels that are named for each part


@dataclass(frozen=True)
class PartMeaning:
    """What a label of a part method shows.

    Attributes:
        name: "part 3", or "background".
        color: Its RGB color.
        share: The share of all patches with this label.
        images: The share of images with this label.
        true_labels: The most frequent true labels under it, with their shares; empty without masks.
        regions: Its most typical regions, each from another image.
    """

    name: str
    color: list[int]
    share: float
    images: float
    true_labels: list[tuple[str, float]]
    regions: list[UInt8[np.ndarray, "r r 4"]]

    @property
    def caption(self) -> str:
        """Return the name, the shares and the true labels in words."""
        if not self.regions:
            return f"{self.name}: no patches"
        found = f"{self.name}: {self.share:.0%} of the patches, in {self.images:.0%} of the images"
        truth = ", ".join(f"{name} {share:.0%}" for name, share in self.true_labels)
        return f"{found}; true labels under it: {truth}" if truth else found


def comparison_columns(labeled: LabeledImages) -> list[str]:
    """Return the titles of the pictures of `comparison_rows`."""
    return ["image", "parts", "plain k-means"] + ["truth"] * (labeled.counts is not None)


def comparison_rows(labeled: LabeledImages, *, count: int, colors: str) -> list[list[UInt8[np.ndarray, "t t 4"]]]:
    """Draw a row per image: the whole image, its parts, plain k-means of the teacher's tokens, and its true mask.

    Args:
        labeled: The images; the first `count` are drawn.
        count: The maximum number of images.
        colors: The name of a palette.
    """
    part_colors, of_cluster = make_palette(colors, labeled.method.num_parts), labeled.color_of_cluster
    rows = []
    for index in range(min(count, len(labeled.reader))):
        image = labeled.reader.image(index)
        maps = (labeled.labels[index], of_cluster[labeled.clusters[index]])
        drawn = [
            overlays.whole_square(
                image, TILE, labels=map_.reshape(labeled.method.grid).astype(np.uint8), colors=part_colors
            )
            for map_ in maps
        ]
        if labeled.counts is not None:
            true = labeled.color_of_true_label[labeled.reader.mask(index)]
            drawn.append(overlays.whole_square(image, TILE, labels=true, colors=true_colors(labeled, colors)))
        rows.append([overlays.whole_square(image, TILE), *drawn])
    return rows


def true_colors(labeled: LabeledImages, colors: str) -> UInt8[np.ndarray, "p 3"]:
    """Return the colors of the parts, then a color for each true label that is matched to no part."""
    numbers = labeled.color_of_true_label
    return make_palette(colors, max(labeled.method.num_parts, 1 + int(numbers[numbers != UNCOLORED].max(initial=0))))


def true_legend(labeled: LabeledImages, colors: str) -> list[tuple[str, list[int]]]:
    """Return the name and the color of each true label except the background; empty without masks."""
    if labeled.counts is None:
        return []
    numbers, palette = labeled.color_of_true_label, true_colors(labeled, colors)
    labels = range(labeled.num_background, len(labeled.reader.mask_names))
    return [(_true_name(labeled, label), palette[numbers[label]].tolist()) for label in labels]


def part_meanings(labeled: LabeledImages, *, colors: str) -> list[PartMeaning]:
    """Return what each label of the part method shows; the background is last."""
    method, labels = labeled.method, labeled.labels
    typical = overlays.most_typical(labeled.probabilities, count=NUM_REGIONS)
    palette = np.vstack([make_palette(colors, method.num_parts), GRAY]).astype(np.uint8)
    meanings = []
    for label in range(method.num_labels):
        is_label = labels == label
        regions = [
            overlays.crop_region(
                labeled.reader.image(index),
                is_label[index].reshape(method.grid),
                size=REGION_SIZE,
                color=palette[label],
            )
            for index in typical[label]
        ]
        meanings.append(
            PartMeaning(
                name="background" if label == method.background else f"part {label}",
                color=palette[label].tolist(),
                share=float(is_label.mean()),
                images=float(is_label.any(1).mean()),
                true_labels=_true_labels(labeled, label),
                regions=regions,
            )
        )
    return meanings


def _true_labels(labeled: LabeledImages, label: int) -> list[tuple[str, float]]:
    """Return the most frequent true labels under a label of the part method, with their shares of its pixels."""
    if labeled.counts is None:
        return []
    pixels = labeled.true_table[label]
    most = np.argsort(-pixels, kind="stable")[:NUM_TRUE_LABELS]
    return [(_true_name(labeled, true), float(pixels[true] / pixels.sum())) for true in most if pixels[true]]


def _true_name(labeled: LabeledImages, label: int) -> str:
    return labeled.reader.mask_names[label].replace("_", " ")


def parts_grid(labeled: LabeledImages, *, count: int, colors: str) -> Image.Image:
    """Arrange `comparison_rows` above the legend of the parts."""
    rows, titles = comparison_rows(labeled, count=count, colors=colors), comparison_columns(labeled)
    names = [str(part) for part in range(labeled.method.num_parts)]
    legend = list(zip(names, make_palette(colors, labeled.method.num_parts).tolist(), strict=True))
    return arrange_grid(
        rows, titles, legends={"parts": legend, "truth": true_legend(labeled, colors)}, notes=[PARTS_NOTE]
    )


def regions_grid(labeled: LabeledImages, *, colors: str) -> Image.Image:
    """Arrange the typical regions of each part, a row per part below its caption."""
    meanings = part_meanings(labeled, colors=colors)
    captions = [part.caption for part in meanings]
    return arrange_grid([part.regions for part in meanings], captions=captions, notes=[REGIONS_NOTE])
