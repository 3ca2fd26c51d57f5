"""Map the parts of a folder of images or of a dataset, and write the part maps in a format of other programs.

The output folder appears when it is complete. It holds:

    labels/*.png, part_maps.npz, part_maps.parquet or annotations.json: the part maps (`semmae.inference.part_formats`)
    overlays/*.jpg: images in the colors of their parts
    legend.png, legend.csv: the color, size and typical regions of each label
    sizes.csv: the share of each label in the area of each image
    skipped.csv: the files that have no part map, with reasons
"""

from collections.abc import Iterator
from dataclasses import dataclass
from os.path import splitext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8
from PIL import Image

from semmae.core.atomic_files import atomic_write
from semmae.data.crops import FULL_IMAGE, crop_part_map, resize_box
from semmae.data.dataset import Reader
from semmae.exchange.encode import EncodeOptions, ImageFolder, Skipped, SkippingView
from semmae.exchange.export import require_empty
from semmae.inference import part_formats
from semmae.inference.part_legend import draw_legend, label_colors, legend_table
from semmae.inference.part_mapper import PartMapper, label_shares
from semmae.report.overlays import color_labels
from semmae.sharding.sources.source_item import EXTENSIONS, printable

OVERLAY_SIDE = 768  # long side of an overlay in pixels; smaller images are not enlarged
LEGEND_IMAGES = 256  # images that typical regions are taken from


@dataclass(frozen=True)
class ExportOptions:
    """What to write, and how to compute it.

    Attributes:
        file_format: The format of the part maps.
        colors: The palette: okabe_ito or tol_bright.
        num_overlays: The number of overlays, spread evenly over the images; None draws all.
        compute: The size of a batch, the number of workers, the device and the precision.
    """

    file_format: part_formats.PartFormat
    colors: str
    num_overlays: int | None
    compute: EncodeOptions


def export_parts(images: Reader | ImageFolder, mapper: PartMapper, out: Path, options: ExportOptions) -> list[Skipped]:
    """Write the part maps of all images with overlays, a legend and a table of sizes, atomically.

    Returns:
        The files of a folder that have no part map, with reasons.

    Raises:
        ValueError: No image can be read, a dataset is damaged, `out` is not empty or is inside the folder of images, or
            the palette is unknown.
    """
    method = mapper.method
    palette = label_colors(options.colors, method.num_parts, background=method.background)
    names, skipped = file_names(images.keys), _other_files(images)
    overlaid, sampled = _spread(len(images), options.num_overlays), _spread(len(images), LEGEND_IMAGES)
    rows: list[list[Any]] = []
    sample: dict[int, Float[np.ndarray, "p n"]] = {}
    with atomic_write(require_empty(_require_outside(images, out))) as folder:
        folder.mkdir()
        writer = part_formats.open_writer(options.file_format, folder, mapper, names=names, palette=palette)
        for index, probability in _assign_readable(images, mapper, options.compute, skipped):
            key, size = images.keys[index], images.size(index)
            labels = probability.argmax(0).astype(np.uint8).reshape(method.grid)
            writer.add(key, size, labels)
            rows.append([printable(key), *size, *label_shares(labels, method.num_labels)])
            if index in overlaid:
                path = folder / "overlays" / f"{names[key]}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                draw_overlay(images, index, labels, colors=palette[: method.num_parts]).save(path, quality=90)
            if index in sampled:
                sample[index] = probability.copy()
        if not rows:
            raise ValueError(f"none of {len(images)} images can be read; {skipped[-1].key}: {skipped[-1].reason}")
        writer.finish()
        sizes = pd.DataFrame(rows, columns=["image", "height", "width", *mapper.names])
        legend = legend_table(mapper.names, palette, sizes[mapper.names].to_numpy())
        draw_legend(legend, images, sample, grid=method.grid).save(folder / "legend.png")
        reasons = pd.DataFrame([(printable(entry.key), entry.reason) for entry in skipped], columns=["file", "reason"])
        for name, table in (("sizes", sizes), ("legend", legend), ("skipped", reasons)):
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.4f")
    return skipped


def _assign_readable(
    images: Reader | ImageFolder, mapper: PartMapper, compute: EncodeOptions, skipped: list[Skipped]
) -> Iterator[tuple[int, Float[np.ndarray, "p n"]]]:
    """Yield the index of each readable image with the probabilities of its labels; append the others to `skipped`."""
    for batch, probabilities in mapper.assign_all(images, SkippingView(mapper.view), compute):
        for index, reason, probability in zip(batch["index"].tolist(), batch["reason"], probabilities, strict=True):
            if reason:
                skipped.append(Skipped(images.keys[index], reason))
            else:
                yield index, probability


def file_names(keys: list[str]) -> dict[str, str]:
    """Return the names of the files for each image, without extension: its key without extension.

    If two images would get the same name, such as a.jpg and a.png, all names keep the extension of the image.
    """
    stems = [splitext(key)[0] for key in keys]
    return dict(zip(keys, stems if len(set(stems)) == len(stems) else keys, strict=True))


def draw_overlay(
    images: Reader | ImageFolder, index: int, labels: UInt8[np.ndarray, "h w"], *, colors: UInt8[np.ndarray, "p 3"]
) -> Image.Image:
    """Return an image in the colors of its parts, at most OVERLAY_SIDE pixels wide and high."""
    height, width = images.size(index)
    scale = min(1.0, OVERLAY_SIDE / max(height, width))
    size = (max(1, round(scale * height)), max(1, round(scale * width)))
    picture = resize_box(images.image(index, at_least=size), FULL_IMAGE, size).transpose(1, 2, 0)
    return Image.fromarray(color_labels(picture, crop_part_map(labels, FULL_IMAGE, size), colors=colors))


def _spread(num_images: int, count: int | None) -> set[int]:
    """Return `count` indices of images, spread evenly; all if there are fewer, or if `count` is None."""
    if count is None or count >= num_images:
        return set(range(num_images))
    return {(2 * number + 1) * num_images // (2 * count) for number in range(count)}


def _other_files(images: Reader | ImageFolder) -> list[Skipped]:
    """Return the files of a folder that do not have the extension of an image."""
    others = images.other_files if isinstance(images, ImageFolder) else []
    return [Skipped(name, f"the extension is none of {', '.join(EXTENSIONS)}") for name in others]


def _require_outside(images: Reader | ImageFolder, out: Path) -> Path:
    """Return `out`; raise ValueError if it is inside the folder of images: another export would map its pictures."""
    if isinstance(images, ImageFolder) and out.resolve().is_relative_to(images.root.resolve()):
        raise ValueError(
            f"{out} is inside the folder of images; expected a folder outside of {images.root}. "
            "Choose another one with --out"
        )
    return out
