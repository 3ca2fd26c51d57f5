"""What segmentation sees of a sample: a training crop or the whole image, each with its mask.

- `TrainCrop`: a random scale, crop and flip that move image and mask together.
- `WholeImage`: the image at the size of inference, its mask as it is.
- `masked_split`: the samples of a split that have masks, with the pixels of each class, or one sentence why not.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass as params

from semmae.core.config import STRICT, UpTo1
from semmae.core.rng import numpy_generator
from semmae.data.crops import FULL_IMAGE, Box, crop_part_map, required_size, resize_box, snap_to_pixels
from semmae.data.dataset import Reader
from semmae.data.decoding import IGNORE
from semmae.evaluation.part_metrics import cell_counts
from semmae.models import vit

PLACES = (32, 32)  # cells of the position map
GRAY = np.array([round(255 * value) for value in vit.MEAN], dtype=np.uint8)  # zero once normalized: where no image is


@params(frozen=True, config=STRICT)
class Crops:
    """Training crops: `zoom` beside the size that inference sees is drawn from a range; probability of a flip."""

    zoom: tuple[PositiveFloat, PositiveFloat]
    flip: UpTo1


@dataclass(frozen=True)
class TrainCrop:
    """A square crop of the image, enlarged at random, and the same crop of its mask, from (seed, epoch, key).

    Where the enlarged image is smaller than the crop there is gray to the right and below, and the mask says nothing.
    """

    seed: int
    crops: Crops
    short_side: int
    side: int

    def __call__(self, reader: Reader, index: int, epoch: int) -> dict[str, Any]:
        rng, whole = numpy_generator(self.seed, "crop", epoch, reader.keys[index]), reader.size(index)
        zoom = rng.uniform(*self.crops.zoom)
        scale = self.short_side * zoom / min(whole)
        height, width = (self.side / (scale * extent) for extent in whole)  # of the crop, as shares
        top, left = (rng.uniform(0, max(0.0, 1 - share)) for share in (height, width))
        box = snap_to_pixels(
            Box(top, left, min(1.0, height), min(1.0, width), bool(rng.random() < self.crops.flip)), whole
        )
        rows, columns = (max(1, round(self.side / max(1.0, share))) for share in (height, width))
        pixels, labels = (
            np.tile(GRAY[:, None, None], (1, self.side, self.side)),
            np.full((self.side, self.side), IGNORE, np.uint8),
        )
        image = reader.image(index, at_least=required_size([(box, (rows, columns))]))
        pixels[:, :rows, :columns] = resize_box(image, box, (rows, columns))
        labels[:rows, :columns] = crop_part_map(mask_of(reader, index), box, (rows, columns))
        return {"key": reader.keys[index], "image": pixels, "mask": labels}


@dataclass(frozen=True)
class WholeImage:
    """The image with its short side resized, its mask as it is."""

    short_side: int

    def __call__(self, reader: Reader, index: int) -> dict[str, Any]:
        whole = reader.size(index)
        rows, columns = (max(self.short_side, round(self.short_side * extent / min(whole))) for extent in whole)
        resized = resize_box(reader.image(index, at_least=(rows, columns)), FULL_IMAGE, (rows, columns))
        return {"key": reader.keys[index], "image": resized, "mask": mask_of(reader, index)}


def masked_split(dataset: Path, split: str) -> tuple[Reader, Integer[np.ndarray, "n g"]]:
    """The samples of a split that have masks, and the pixels of each class in the cells of PLACES, over all of them."""
    reader = Reader(dataset, split)
    if reader.mask_kind is None:
        raise ValueError(f"{dataset} has no masks; segment needs a dataset whose sources have `masks` in params.yaml")
    counts = np.zeros((PLACES[0] * PLACES[1], len(reader.mask_names)), np.int64)
    found = []
    for index in range(len(reader)):
        mask = reader.mask(index)
        if mask is not None:
            counts += cell_counts(mask, grid=PLACES, num_classes=len(reader.mask_names))
            found.append(index)
    if not counts.any():
        raise ValueError(f"{dataset}: no sample of {split} has a mask that says anything; segment cannot use it")
    return reader.select(np.array(found)), counts


def mask_of(reader: Reader, index: int) -> UInt8[np.ndarray, "h w"]:
    """The mask of a sample that has one."""
    mask = reader.mask(index)
    assert mask is not None, f"{reader.keys[index]} has no mask; select with masked_split"
    return mask
