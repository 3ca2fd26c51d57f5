"""Write label images as annotations in the format of COCO: a run-length encoding for each label of each image.

The encoding is that of pycocotools, which is not needed here. It lists the lengths of the runs of pixels outside and
inside of a region, column by column, and packs them into printable characters.
"""

import json
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from semmae.data.crops import FULL_IMAGE, crop_part_map

MAX_GROUPS = 7  # of 5 bits in a number; enough for 2**34 pixels


class CocoWriter:
    """Writes `annotations.json`. The background has no annotations, and part p is the category p + 1.

    Args:
        folder: The folder of the file.
        names: The name of each part, without the background.
    """

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.path, self.names = folder / "annotations.json", names
        self.images: list[dict[str, Any]] = []
        self.ids = count(1)
        self.path.write_text('{"annotations": [')

    def add(self, key: str, size: tuple[int, int], labels: UInt8[np.ndarray, "h w"]) -> None:
        """Add an image.

        Args:
            key: The name of its file.
            size: Its height and width in pixels.
            labels: Its part map.
        """
        height, width = size
        self.images.append({"id": len(self.images) + 1, "file_name": key, "height": height, "width": width})
        image = crop_part_map(labels.T, FULL_IMAGE, (width, height)).T  # in memory column by column, as the runs
        with self.path.open("a") as file:
            for part in range(len(self.names)):
                if (labels == part).any() and (region := image == part).any():
                    annotation = {"id": next(self.ids), "image_id": len(self.images), "category_id": part + 1}
                    separator = "\n" if annotation["id"] == 1 else ",\n"
                    file.write(separator + json.dumps(annotation | describe_region(region)))

    def finish(self) -> None:
        """Write the lists of images and categories, and complete the file."""
        categories = [{"id": part + 1, "name": name, "supercategory": "part"} for part, name in enumerate(self.names)]
        with self.path.open("a") as file:
            file.write(f'\n],\n"images": {json.dumps(self.images)},\n"categories": {json.dumps(categories)}}}\n')


def describe_region(region: np.ndarray) -> dict[str, Any]:
    """Return the segmentation, area and bounding box (left, top, width, height) of a region that is not empty."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    segmentation = {"size": list(region.shape), "counts": pack(run_lengths(region))}
    return {"segmentation": segmentation, "area": int(region.sum()), "bbox": list(map(int, box)), "iscrowd": 0}


def run_lengths(region: np.ndarray) -> Integer[np.ndarray, " r"]:
    """Return the lengths of the runs outside and inside of a region, column by column, starting outside."""
    pixels = region.ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    starts = np.concatenate([[0], changes, [pixels.size]])
    return np.diff(starts) if not pixels[0] else np.concatenate([[0], np.diff(starts)])


def pack(lengths: Integer[np.ndarray, " r"]) -> str:
    """Pack run lengths into characters, as `rleToString` of pycocotools.

    From the fourth length on, the difference to the length two places before is packed. A number is a sequence of
    groups of 5 bits in two's complement, the lowest first. Bit 6 of a character tells that more groups follow.
    """
    numbers = lengths.astype(np.int64)
    numbers[3:] -= lengths[1:-2]
    limits = 2 ** (5 * np.arange(1, MAX_GROUPS + 1) - 1)
    num_groups = 1 + ((numbers[:, None] < -limits) | (numbers[:, None] >= limits)).sum(1, keepdims=True)
    group = np.arange(MAX_GROUPS)
    bits = (numbers[:, None] >> (5 * group)) & 31
    characters = 48 + bits + 32 * (group < num_groups - 1)
    return characters[group < num_groups].astype(np.uint8).tobytes().decode("ascii")
