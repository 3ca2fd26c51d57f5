"""Transforms of an image and its mask: random crops for training, and the whole image for inference."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass as pydantic_dataclass

from semmae.core.config import STRICT, UpTo1
from semmae.core.rng import numpy_generator
from semmae.data.crops import FULL_IMAGE, Box, crop_part_map, required_size, resize_box, snap_to_pixels
from semmae.data.dataset import Reader
from semmae.data.decoding import IGNORE
from semmae.evaluation.segmentation.splits import read_mask
from semmae.models import vit

PADDING = np.array([round(255 * value) for value in vit.MEAN], dtype=np.uint8)  # gray, zero after normalization


@pydantic_dataclass(frozen=True, config=STRICT)
class SegmentationCropConfig:
    """Settings of training crops: range of the zoom (1: size at inference), and probability of a flip."""

    zoom: tuple[PositiveFloat, PositiveFloat]
    flip: UpTo1


@dataclass(frozen=True)
class TrainCrop:
    """A square crop of the resized image and of its mask, a function of (seed, epoch, key).

    If the resized image is smaller than the crop, the crop is padded on the right and at the bottom. The mask ignores
    the padding.

    Attributes:
        short_side: Short side of an image at zoom 1, in pixels.
        side: Side of the crop in pixels.
    """

    seed: int
    config: SegmentationCropConfig
    short_side: int
    side: int

    def __call__(self, reader: Reader, index: int, epoch: int) -> dict[str, Any]:
        rng, size = numpy_generator(self.seed, "crop", epoch, reader.keys[index]), reader.size(index)
        zoom = rng.uniform(*self.config.zoom)
        scale = self.short_side * zoom / min(size)
        height, width = (self.side / (scale * extent) for extent in size)  # of the crop, as shares of the image
        top, left = (rng.uniform(0, max(0.0, 1 - share)) for share in (height, width))
        box = snap_to_pixels(
            Box(top, left, min(1.0, height), min(1.0, width), bool(rng.random() < self.config.flip)), size
        )
        rows, columns = (max(1, round(self.side / max(1.0, share))) for share in (height, width))
        pixels = np.tile(PADDING[:, None, None], (1, self.side, self.side))
        labels = np.full((self.side, self.side), IGNORE, np.uint8)
        image = reader.image(index, at_least=required_size([(box, (rows, columns))]))
        pixels[:, :rows, :columns] = resize_box(image, box, (rows, columns))
        labels[:rows, :columns] = crop_part_map(read_mask(reader, index), box, (rows, columns))
        return {"key": reader.keys[index], "image": pixels, "mask": labels}


@dataclass(frozen=True)
class WholeImage:
    """The image, resized so that its short side has `short_side` pixels, and its mask at the original size."""

    short_side: int

    def __call__(self, reader: Reader, index: int) -> dict[str, Any]:
        size = reader.size(index)
        rows, columns = (max(self.short_side, round(self.short_side * extent / min(size))) for extent in size)
        resized = resize_box(reader.image(index, at_least=(rows, columns)), FULL_IMAGE, (rows, columns))
        return {"key": reader.keys[index], "image": resized, "mask": read_mask(reader, index)}
