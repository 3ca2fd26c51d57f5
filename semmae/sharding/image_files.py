"""Image files in a folder, in a fixed order. They can be encoded and trained on without writing shards."""

from pathlib import Path
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int64, UInt8

from semmae.data import decoding, epoch_order
from semmae.sharding.sources.source_item import Blob


class ImageFiles:
    """Image files by their paths relative to a folder; a `TrainingImages`.

    Args:
        root: The folder.
        keys: Relative paths of the files.
    """

    weights: None = None  # an epoch visits each image once

    def __init__(self, root: Path, keys: list[str]) -> None:
        self.root, self.keys = root, keys

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, index: SupportsIndex, *, at_least: tuple[int, int] = (0, 0)) -> UInt8[np.ndarray, "h w 3"]:
        """Decode an image, upright, in RGB; see `ImageSequence.image`.

        Raises:
            ValueError, OSError: The file cannot be read or decoded.
        """
        return decoding.to_rgb(self._read(index), at_least=at_least)

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        """Height and width of the upright image in pixels, from the header of the file.

        Raises:
            ValueError: The file is not an image.
            OSError: The file cannot be read.
        """
        return decoding.read_header(self._read(index)).size

    def epoch_order(self, *, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
        """Return the order in which a training epoch visits the images."""
        return epoch_order.epoch_order(len(self), seed=seed, epoch=epoch)

    def _read(self, index: SupportsIndex) -> bytes:
        path = self.root / self.keys[index]
        return Blob(str(path), 0, path.stat().st_size).read()
