"""What fine-tuning sees of a sample: a random crop under timm's RandAugment, with its label.

The crop and the policy are drawn from (seed, epoch, key): timm draws from the global generators, which are set for each
sample and put back after it, so worker processes, resumed runs and other ranks see the same images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field, NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass as params
from timm.data import IMAGENET_DEFAULT_MEAN, auto_augment
from timm.data.auto_augment import rand_augment_transform

from semmae.core.config import STRICT
from semmae.core.rng import numpy_generator, seeded
from semmae.data.dataset import Reader
from semmae.data.transforms import Crop, load_crop, random_box

SHIFT = 0.45  # the largest shift of RandAugment, as a share of the side (timm)


@params(frozen=True, config=STRICT)
class RandAugment:
    """timm's `rand-m<magnitude>-n<operations>-mstd<magnitude_std>-inc1`: operations that grow with the magnitude."""

    operations: PositiveInt  # per image
    magnitude: Annotated[int, Field(ge=0, le=10)]
    magnitude_std: NonNegativeFloat


@dataclass(frozen=True)
class Augmented:
    """A random crop, flipped or not, then RandAugment's operations if asked for."""

    seed: int
    crop: Crop
    rand_augment: RandAugment | None
    img_size: int

    def __call__(self, reader: Reader, index: int, epoch: int) -> dict[str, Any]:
        key = reader.keys[index]
        box = random_box(numpy_generator(self.seed, "crop", epoch, key), reader.size(index), self.crop)
        pixels = load_crop(reader, index, box, self.img_size)
        if self.rand_augment is not None:
            with seeded(self.seed, "rand augment", epoch, key):
                image = Image.fromarray(pixels.transpose(1, 2, 0))
                pixels = np.asarray(policy(self.rand_augment, self.img_size)(image)).transpose(2, 0, 1)
        return {"key": key, "image": np.ascontiguousarray(pixels), "label": reader.labels[index]}


@cache
def policy(how: RandAugment, img_size: int) -> Callable[[Image.Image], Image.Image]:
    """timm's transform, with what `timm.data.create_transform` would give it for bicubic images of that size."""
    name = f"rand-m{how.magnitude}-n{how.operations}-mstd{how.magnitude_std:g}-inc1"
    gray = tuple(round(255 * mean) for mean in IMAGENET_DEFAULT_MEAN)  # fills what an operation uncovers
    hparams = {"translate_const": int(SHIFT * img_size), "img_mean": gray, "interpolation": Image.Resampling.BICUBIC}
    transform = rand_augment_transform(name, hparams)
    for operation in transform.ops:
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = posterize
    return transform


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's, but one bit stays at the highest magnitude, where timm asks for none: Pillow 13 refuses that."""
    return ImageOps.posterize(image, max(1, bits))
