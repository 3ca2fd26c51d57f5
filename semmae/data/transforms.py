"""What a training step sees of a sample: crops sampled by name, so that a resumed run sees the same ones.

Every box and color is drawn from (seed, epoch, key). The loaders are called by `run.Run.steps`, in worker processes
too, as `load(reader, index, epoch)`; they return uint8 arrays, which the device normalizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import NonNegativeFloat, PositiveFloat
from pydantic.dataclasses import dataclass as params
from torch import Tensor

from semmae.core.config import STRICT, Portion, Range, UpTo1
from semmae.core.rng import numpy_generator
from semmae.data.crops import WHOLE, Box, covering, random_resized_crop, resize_box, snapped
from semmae.data.dataset import Reader


@params(frozen=True, config=STRICT)
class Crop:
    """RandomResizedCrop: range of the area, range of the aspect ratio (w / h), probability of a flip."""

    scale: Range[Portion]
    ratio: Range[PositiveFloat]
    flip: UpTo1


@params(frozen=True, config=STRICT)
class Color:
    """How far colors are moved: each factor is drawn from 1 - x ... 1 + x, the hue's turn from -x ... x circles."""

    brightness: NonNegativeFloat
    contrast: NonNegativeFloat
    saturation: NonNegativeFloat
    hue: UpTo1
    gray: UpTo1  # of no color at all


@dataclass(frozen=True)
class OneCrop:
    """A random crop, and what its part map is found and cropped by, a batch at once (`PartMaps.crops`): `index` of the
    sample and `span` of the crop.
    """

    seed: int
    crop: Crop
    sizes: Sequence[int]  # pixels of a side, by epoch

    def __call__(self, reader: Reader, index: int, epoch: int) -> dict[str, Any]:
        rng = numpy_generator(self.seed, "crop", epoch, reader.keys[index])
        box = random_box(rng, reader.size(index), self.crop)
        image = load_crop(reader, index, box, self.sizes[epoch])
        return {"key": reader.keys[index], "index": int(index), "image": image, "span": np.array(box.span)}


@dataclass(frozen=True)
class Whole:
    """The whole image resized, not cropped, to a square, as part maps see it; flipped at random with probability
    `flip`.
    """

    img_size: int
    seed: int
    flip: float

    def __call__(self, reader: Reader, index: int, epoch: int = 0) -> dict[str, Any]:
        flip = self.flip > 0 and numpy_generator(self.seed, "flip", epoch, reader.keys[index]).uniform() < self.flip
        image = load_crop(reader, index, WHOLE._replace(flip=flip), self.img_size)
        return {"key": reader.keys[index], "image": image}


@dataclass(frozen=True)
class MultiCrop:
    """DINO's crops: two global ones and `local_crops` small ones, each with the colors of its own."""

    seed: int
    global_crop: Crop
    local_crop: Crop
    local_crops: int
    global_size: int
    local_size: int
    color: Color

    def __call__(self, reader: Reader, index: int, epoch: int) -> dict[str, Any]:
        rng, whole = numpy_generator(self.seed, "crops", epoch, reader.keys[index]), reader.size(index)
        wanted = [(self.global_crop, self.global_size)] * 2 + [(self.local_crop, self.local_size)] * self.local_crops
        boxes = [(random_box(rng, whole, crop), size) for crop, size in wanted]
        image = reader.image(index, at_least=covering((box, (size, size)) for box, size in boxes))
        crops = [resize_box(image, box, (size, size)) for box, size in boxes]
        sample = {"key": reader.keys[index], "global": np.stack(crops[:2])}
        if self.local_crops:
            sample["local"] = np.stack(crops[2:])
        sample["color"] = np.stack([color_matrix(rng, self.color) for _ in crops])
        return sample


def random_box(rng: np.random.Generator, size: tuple[int, int], crop: Crop) -> Box:
    """A random box of an image of that height and width, on its pixels."""
    return snapped(random_resized_crop(rng, aspect=size[1] / size[0], **vars(crop)), size)


def load_crop(reader: Reader, index: int, box: Box, size: int) -> UInt8[np.ndarray, "3 {size} {size}"]:
    """The box of a sample's image, decoded no finer than it takes."""
    image = reader.image(index, at_least=covering([(box, (size, size))]))
    return resize_box(image, box, (size, size))


LUMA = np.array([0.299, 0.587, 0.114])


def color_matrix(rng: np.random.Generator, color: Color) -> Float[np.ndarray, "3 4"]:
    """Brightness, contrast, saturation and hue in one affine map of RGB in [0, 1]: cheap, and done on the device.

    Contrast turns about middle gray, saturation about luma, hue about the gray axis.
    """

    def factor(spread: float) -> float:
        return rng.uniform(max(0.0, 1 - spread), 1 + spread)

    gain, contrast, saturation = factor(color.brightness), factor(color.contrast), factor(color.saturation)
    turn = rng.uniform(-color.hue, color.hue) * 2 * np.pi
    if rng.uniform() < color.gray:
        saturation = 0.0
    axis = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    rotate = np.cos(turn) * np.eye(3) + (1 - np.cos(turn)) * axis + np.sin(turn) * cross  # Rodrigues
    matrix = (saturation * np.eye(3) + (1 - saturation) * np.ones((3, 1)) * LUMA) @ rotate * gain * contrast
    shift = np.full((3, 1), 0.5 * (1 - contrast))
    return np.hstack([matrix, shift]).astype(np.float32)


def recolor(images: UInt8[Tensor, "b 3 H W"], matrix: Float[Tensor, "b 3 4"]) -> UInt8[Tensor, "b 3 H W"]:
    """Images under their color matrices, clipped."""
    x = torch.einsum("bij,bjhw->bihw", matrix[:, :, :3], images.float()) + 255 * matrix[:, :, 3, None, None]
    return x.round().clamp(0, 255).to(torch.uint8)
