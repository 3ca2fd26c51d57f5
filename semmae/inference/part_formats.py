"""The formats of exported part maps: indexed PNG, npz, Parquet and COCO (`semmae.inference.coco`)."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from semmae.data.crops import FULL_IMAGE, crop_part_map
from semmae.inference.coco import CocoWriter
from semmae.inference.part_mapper import PartMapper
from semmae.parts import part_maps
from semmae.sharding.sources.source_item import printable

PartFormat = Literal["png", "npz", "parquet", "coco"]


class PngWriter:
    """Writes an 8-bit PNG with a palette for each image, at the size of the image. Its values are the labels.

    Args:
        folder: The folder of the files; it is created.
        names: The name of the file of each key, without its extension.
        palette: The color of each label.
    """

    def __init__(self, folder: Path, names: dict[str, str], palette: UInt8[np.ndarray, "p 3"]) -> None:
        self.folder, self.names, self.palette = folder, names, palette

    def add(self, key: str, size: tuple[int, int], labels: UInt8[np.ndarray, "h w"]) -> None:
        """Write the label image of an image."""
        image = Image.fromarray(crop_part_map(labels, FULL_IMAGE, size))
        image.putpalette(self.palette.tobytes())
        path = self.folder / f"{self.names[key]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, bits=8)

    def finish(self) -> None:
        """Do nothing: every file is complete."""


class ArrayWriter:
    """Collects part maps, and writes them to one npz or Parquet file (`semmae.parts.part_maps.write`).

    Args:
        path: The file, with the extension .npz or .parquet.
        mapper: The part method.
    """

    def __init__(self, path: Path, mapper: PartMapper) -> None:
        self.path, self.mapper = path, mapper
        self.keys: list[str] = []
        self.labels: list[UInt8[np.ndarray, "h w"]] = []
        self.sizes: list[tuple[int, int]] = []

    def add(self, key: str, size: tuple[int, int], labels: UInt8[np.ndarray, "h w"]) -> None:
        """Keep the part map of an image."""
        self.keys.append(printable(key))  # Arrow stores only UTF-8
        self.labels.append(labels)
        self.sizes.append(size)

    def finish(self) -> None:
        """Write the file."""
        labels, method = np.stack(self.labels), self.mapper.method
        if self.path.suffix == ".npz":
            np.savez_compressed(self.path, keys=self.keys, labels=labels, sizes=self.sizes, names=self.mapper.names)
            return
        metadata: dict[str, Any] = {
            "grid": method.config["grid"], "num_parts": method.num_parts, "background": method.background,
            "shard": None, "teacher": self.mapper.teacher.digest, "parts": method.digest,
        }  # fmt: skip
        channels = {"part_map": labels.reshape(len(labels), -1)}
        part_maps.write(self.path, keys=self.keys, channels=channels, metadata=metadata)


PartMapWriter = PngWriter | ArrayWriter | CocoWriter


def open_writer(
    file_format: PartFormat,
    folder: Path,
    mapper: PartMapper,
    *,
    names: dict[str, str],
    palette: UInt8[np.ndarray, "p 3"],
) -> PartMapWriter:
    """Return the writer of a format.

    Args:
        file_format: The format.
        folder: An existing folder.
        mapper: The part method.
        names: The name of the label image of each key, without its extension.
        palette: The color of each label.
    """
    if file_format == "png":
        return PngWriter(folder / "labels", names, palette)
    if file_format == "coco":
        return CocoWriter(folder, mapper.names[: mapper.method.num_parts])
    return ArrayWriter(folder / f"part_maps.{file_format}", mapper)
