"""What a training step sees of a sample: crops sampled by name, so that a resumed run sees the same ones.

Every box and colour is drawn from (seed, epoch, key). The loaders are called by `run.Run.steps`, in worker processes
too, as `load(reader, index, epoch)`; they return uint8 arrays, which the device normalises.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field, NonNegativeFloat, PositiveFloat
from pydantic.dataclasses import dataclass as params
from torch import Tensor

from semmae.augment import WHOLE, crop_image, crop_part_map, random_resized_crop
from semmae.params import STRICT, Range, UpTo1
from semmae.part_maps import PartMaps
from semmae.reader import Reader
from semmae.rng import numpy_generator


@params(frozen=True, config=STRICT)
class Crop:
    """RandomResizedCrop: range of the area, range of the aspect ratio (w / h), probability of a flip."""

    scale: Range[Annotated[float, Field(gt=0, le=1)]]
    ratio: Range[PositiveFloat]
    flip: UpTo1


@params(frozen=True, config=STRICT)
class Colour:
    """How far colours are moved: each factor is drawn from 1 - x ... 1 + x, the hue's turn from -x ... x circles."""

    brightness: NonNegativeFloat
    contrast: NonNegativeFloat
    saturation: NonNegativeFloat
    hue: UpTo1
    gray: UpTo1  # of no colour at all


@dataclass(frozen=True)
class OneCrop:
    """A random crop and, where a mask strategy asks for one, the same crop of a part-map field as its `evidence`."""

    seed: int
    crop: Crop
    img_size: int
    grid: tuple[int, int]
    maps: PartMaps | None
    field: str  # part_map or attention

    def __call__(self, reader: Reader, index: int, epoch: int) -> dict[str, Any]:
        image = reader.image(index)
        rng = numpy_generator(self.seed, "crop", epoch, reader.keys[index])
        box = random_resized_crop(rng, aspect=image.shape[1] / image.shape[0], **vars(self.crop))
        sample = {
            "key": reader.keys[index],
            "image": np.ascontiguousarray(crop_image(image, box, self.img_size).transpose(2, 0, 1)),
        }
        if self.maps is not None:
            labels = getattr(self.maps, self.field)[index].reshape(self.maps.grid)
            sample["evidence"] = crop_part_map(labels, box, self.grid).reshape(-1)
        return sample


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
        image = crop_image(reader.image(index), WHOLE._replace(flip=flip), self.img_size)
        return {"key": reader.keys[index], "image": np.ascontiguousarray(image.transpose(2, 0, 1))}


@dataclass(frozen=True)
class MultiCrop:
    """DINO's crops: two global ones and `local_crops` small ones, each with the colours of its own."""

    seed: int
    global_crop: Crop
    local_crop: Crop
    local_crops: int
    global_size: int
    local_size: int
    colour: Colour

    def __call__(self, reader: Reader, index: int, epoch: int) -> dict[str, Any]:
        image = reader.image(index)
        rng = numpy_generator(self.seed, "crops", epoch, reader.keys[index])
        aspect = image.shape[1] / image.shape[0]
        wanted = [(self.global_crop, self.global_size)] * 2 + [(self.local_crop, self.local_size)] * self.local_crops
        crops = [
            crop_image(image, random_resized_crop(rng, aspect=aspect, **vars(crop)), size) for crop, size in wanted
        ]
        sample = {"key": reader.keys[index], "global": np.stack(crops[:2]).transpose(0, 3, 1, 2)}
        if self.local_crops:
            sample["local"] = np.stack(crops[2:]).transpose(0, 3, 1, 2)
        sample["colour"] = np.stack([colour_matrix(rng, self.colour) for _ in crops])
        return sample


LUMA = np.array([0.299, 0.587, 0.114])


def colour_matrix(rng: np.random.Generator, colour: Colour) -> Float[np.ndarray, "3 4"]:
    """Brightness, contrast, saturation and hue in one affine map of RGB in [0, 1]: cheap, and done on the device.

    Contrast turns about middle gray, saturation about luma, hue about the gray axis.
    """

    def factor(spread: float) -> float:
        return rng.uniform(max(0.0, 1 - spread), 1 + spread)

    gain, contrast, saturation = factor(colour.brightness), factor(colour.contrast), factor(colour.saturation)
    turn = rng.uniform(-colour.hue, colour.hue) * 2 * np.pi
    if rng.uniform() < colour.gray:
        saturation = 0.0
    axis = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    rotate = np.cos(turn) * np.eye(3) + (1 - np.cos(turn)) * axis + np.sin(turn) * cross  # Rodrigues
    matrix = (saturation * np.eye(3) + (1 - saturation) * np.ones((3, 1)) * LUMA) @ rotate * gain * contrast
    shift = np.full((3, 1), 0.5 * (1 - contrast))
    return np.hstack([matrix, shift]).astype(np.float32)


def recolour(images: UInt8[Tensor, "b 3 H W"], matrix: Float[Tensor, "b 3 4"]) -> UInt8[Tensor, "b 3 H W"]:
    """Images under their colour matrices, clipped."""
    x = torch.einsum("bij,bjhw->bihw", matrix[:, :, :3], images.float()) + 255 * matrix[:, :, 3, None, None]
    return x.round().clamp(0, 255).to(torch.uint8)
