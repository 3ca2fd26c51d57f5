"""What an evaluation leaves behind, as a page shows it: curves, confusions, the worst mistakes, segmented images.

Everything is optional: what a dataset was not scored for, or what is no longer there, is left out.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup

from semmae.data import decoding
from semmae.data.crops import Box, crop_image, crop_part_map
from semmae.data.dataset import Reader
from semmae.evaluation import curve_files
from semmae.report import charts as curves
from semmae.report import confusions, overlays
from semmae.report.palettes import GRAY, palette

TILE, MISTAKES, PAIRS = 168, 8, 12  # pixels of a picture; mistakes shown; confused pairs where there are many classes
SHARES = ("top1", "miou")  # ends of the names of columns in percent
WORDS = {"top1": "top-1", "miou": "mIoU", "upernet": "UPerNet"}


def charts(folder: Path, lines: Collection[str]) -> list[Markup]:
    """A chart per curve of the `lines` that changes, but for learning rates; that of a protocol says which."""
    drawn = []
    for line in lines:
        for column, points in curve_files.read(folder, line).items():
            if column != "lr" and len({y for _, y in points}) > 1:
                words = column.split("_") if line == "encoder" else [line, *column.split("_")]
                name = " ".join(WORDS.get(word, word) for word in words)
                drawn.append(curves.chart(points, title=name, percent=column.endswith(SHARES)))
    return drawn


def answered(table: Path, dataset: Path) -> dict[str, Any] | None:
    """The `heatmap` (None for more than 30 classes, then `pairs`) and `mistakes`: tiles of (picture, actual,
    predicted, confidence), without pictures where the shards are gone.
    """
    if not table.exists():
        return None
    answers = confusions.read(table)
    names = sorted(set(answers["actual"]) | set(answers["predicted"]))
    drawn = len(names) <= confusions.DRAWN
    reader = Reader(dataset, "val") if (dataset / "index.parquet").exists() else None
    places = {key: index for index, key in enumerate(reader.keys)} if reader else {}
    mistakes = [
        {**row, "picture": square(reader.image(places[row["key"]])) if reader and row["key"] in places else None}
        for row in confusions.worst(answers, MISTAKES)
    ]
    return {
        "heatmap": confusions.heatmap(confusions.matrix(answers, names), names) if drawn else None,
        "pairs": [] if drawn else confusions.confused(answers, PAIRS),
        "mistakes": mistakes,
        "wrong": int((answers["actual"] != answers["predicted"]).sum()),
        "samples": len(answers),
    }


def segmented(
    examples: Path, dataset: Path, protocols: Collection[str], *, colors: str
) -> tuple[list[list[UInt8[np.ndarray, "t t 3"]]], list[tuple[str, list[int]]]]:
    """Rows of image, true mask and the mask that each protocol predicts, in the central square, and the legend: the
    classes seen there and their RGB. The background of parts is gray in the legend, and in the pictures only paler.
    """
    if not examples.is_dir() or not (dataset / "index.parquet").exists():
        return [], []
    reader, rows = Reader(dataset, "val"), []
    seen: set[int] = set()
    first = int(reader.mask_kind != "classes")  # the label that comes after the background
    tones = palette(colors, len(reader.mask_names) - first)
    for index, key in enumerate(reader.keys):
        files = [examples / protocol / f"{key}.png" for protocol in protocols]
        if all(file.exists() for file in files):
            image, truth = reader.image(index), reader.mask(index)
            assert truth is not None
            masks = (truth, *(decoding.mask_indices(file.read_bytes()) for file in files))
            rows.append([square(image), *(laid_over(image, mask - first, tones) for mask in masks)])  # 0 becomes 255
            seen.update(*(np.unique(mask).tolist() for mask in masks))
    colored = zip(reader.mask_names, [list(GRAY)] * first + tones.tolist(), strict=True)
    return rows, [entry for label, entry in enumerate(colored) if label in seen]


def square(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "t t 3"]:
    """The central square of an image."""
    return crop_image(image, _center(image), TILE)


def laid_over(
    image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], colors: UInt8[np.ndarray, "p 3"]
) -> UInt8[np.ndarray, "t t 3"]:
    """The central square of an image under its mask; what is 255 (ignore) is only paler."""
    labels = crop_part_map(mask, _center(image), (TILE, TILE))
    return overlays.overlay(square(image), labels, colors=colors)


def _center(image: np.ndarray) -> Box:
    side = min(image.shape[:2])
    height, width = side / image.shape[0], side / image.shape[1]
    return Box((1 - height) / 2, (1 - width) / 2, height, width, flip=False)
