"""Views of an image in evaluations: a crop, resized to the input size of a network.

A view is a function `(reader, index) -> sample` for `semmae.data.loader.batches`. A sample has an `image`, (3, s, s)
uint8. `RandomViews` is a function `(reader, index, epoch) -> sample` for `Run.steps`.
"""

from dataclasses import dataclass
from typing import Any

from semmae.core.rng import numpy_generator
from semmae.data.crops import Box, channels_first, resample_box
from semmae.data.dataset import ImageSequence, Reader
from semmae.data.transforms import Crop, load_crop, random_box

CENTER_CROP = 224 / 256  # share of the short side that CenterView keeps
RANDOM_CROP = Crop(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5)  # linear probe of MAE (He et al. 2022, table 10)


@dataclass(frozen=True)
class CenterView:
    """The central square after a resize of the short side to img_size * 256 / 224, as usual on ImageNet.

    One resampling crops and resizes, so no intermediate image is rounded to 8 bits.
    """

    img_size: int

    def __call__(self, images: ImageSequence, index: int) -> dict[str, Any]:
        image = images.image(index)
        side = CENTER_CROP * min(image.shape[:2])
        height, width = side / image.shape[0], side / image.shape[1]
        box = Box((1 - height) / 2, (1 - width) / 2, height, width, flip=False)
        return {"image": channels_first(resample_box(image, box, (self.img_size, self.img_size)))}


@dataclass(frozen=True)
class RandomView:
    """A random resized crop with a random flip, a function of (seed, view, key)."""

    img_size: int
    seed: int
    view: int

    def __call__(self, reader: Reader, index: int) -> dict[str, Any]:
        rng = numpy_generator(self.seed, "view", self.view, reader.keys[index])
        return {"image": load_crop(reader, index, random_box(rng, reader.size(index), RANDOM_CROP), self.img_size)}


@dataclass(frozen=True)
class RandomViews:
    """A training sample: key, label, and the same random view at several sizes. Epoch e has view e."""

    sizes: tuple[int, ...]
    seed: int

    def __call__(self, reader: Reader, index: int, epoch: int) -> dict[str, Any]:
        views = {f"image{size}": RandomView(size, self.seed, epoch)(reader, index)["image"] for size in self.sizes}
        return {"key": reader.keys[index], "label": reader.labels[index], **views}
