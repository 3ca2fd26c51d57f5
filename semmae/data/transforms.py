"""The views of an image in training: random crops, colors and RandAugment.

The random numbers of a view depend only on the seed, the epoch and the key of the sample. So a view is the same in a
resumed run, and for any number of workers and ranks. The loader calls a view as `view(reader, index, epoch)`, also in
worker processes. Views return uint8 arrays, channels first; the device normalizes them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as pydantic_dataclass
from timm.data import IMAGENET_DEFAULT_MEAN, auto_augment
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor

from semmae.core.config import STRICT, PositiveUpTo1, Range, UpTo1
from semmae.core.rng import numpy_generator, seeded
from semmae.data.crops import FULL_IMAGE, Box, random_resized_crop, required_size, resize_box, snap_to_pixels
from semmae.data.dataset import ImageSequence, Reader

LUMA = np.array([0.299, 0.587, 0.114])
MAX_SHIFT = 0.45  # largest translation of RandAugment, as a fraction of the side (timm)


@pydantic_dataclass(frozen=True, config=STRICT)
class Crop:
    """Parameters of a random resized crop."""

    scale: Range[PositiveUpTo1]  # area, as a fraction of the image area
    ratio: Range[PositiveFloat]  # width / height
    flip: UpTo1  # probability of a horizontal flip


@pydantic_dataclass(frozen=True, config=STRICT)
class ColorJitter:
    """Strengths x of random color changes.

    Brightness, contrast and saturation are scaled by a factor from [1 - x, 1 + x]. The hue is rotated by an angle from
    [-x, x], where 1 is a full circle.
    """

    brightness: NonNegativeFloat
    contrast: NonNegativeFloat
    saturation: NonNegativeFloat
    hue: UpTo1
    gray: UpTo1  # probability of a gray image


@pydantic_dataclass(frozen=True, config=STRICT)
class RandAugment:
    """Parameters of timm's policy `rand-m<magnitude>-n<operations>-mstd<magnitude_std>-inc1`."""

    operations: PositiveInt  # per image
    magnitude: Annotated[int, Field(ge=0, le=10)]
    magnitude_std: NonNegativeFloat


@dataclass(frozen=True)
class OneCrop:
    """A random crop, with the sample index and the span of the box, which `PartMaps.crops` needs."""

    seed: int
    crop: Crop
    sizes: Sequence[int]  # side of the crop in each epoch, in pixels

    def __call__(self, reader: Reader, index: int, epoch: int) -> dict[str, Any]:
        key = reader.keys[index]
        box = random_box(numpy_generator(self.seed, "crop", epoch, key), reader.size(index), self.crop)
        image = load_crop(reader, index, box, self.sizes[epoch])
        return {"key": key, "index": int(index), "image": image, "span": np.array(box.span)}


@dataclass(frozen=True)
class AugmentedCrop:
    """A random crop and its label, for fine-tuning. RandAugment changes the crop, unless `rand_augment` is None."""

    seed: int
    crop: Crop
    rand_augment: RandAugment | None
    img_size: int

    def __call__(self, reader: Reader, index: int, epoch: int) -> dict[str, Any]:
        key = reader.keys[index]
        box = random_box(numpy_generator(self.seed, "crop", epoch, key), reader.size(index), self.crop)
        pixels = load_crop(reader, index, box, self.img_size)
        if self.rand_augment is not None:
            with seeded(self.seed, "rand augment", epoch, key):  # timm draws from the global generators
                image = Image.fromarray(pixels.transpose(1, 2, 0))
                pixels = np.asarray(build_rand_augment(self.rand_augment, self.img_size)(image)).transpose(2, 0, 1)
        return {"key": key, "image": np.ascontiguousarray(pixels), "label": reader.labels[index]}


@dataclass(frozen=True)
class FullImage:
    """The whole image, resized to a square, and flipped with probability `flip`. Part maps see images this way."""

    img_size: int
    seed: int
    flip: float

    def __call__(self, images: ImageSequence, index: int, epoch: int = 0) -> dict[str, Any]:
        key = images.keys[index]
        flip = self.flip > 0 and numpy_generator(self.seed, "flip", epoch, key).uniform() < self.flip
        image = load_crop(images, index, FULL_IMAGE._replace(flip=flip), self.img_size)
        return {"key": key, "image": image}


@dataclass(frozen=True)
class MultiCrop:
    """The crops of DINO (arXiv:2104.14294): two global and `local_crops` local crops, each with its own colors."""

    seed: int
    global_crop: Crop
    local_crop: Crop
    local_crops: int
    global_size: int
    local_size: int
    color: ColorJitter

    def __call__(self, reader: Reader, index: int, epoch: int) -> dict[str, Any]:
        key = reader.keys[index]
        rng, image_size = numpy_generator(self.seed, "crops", epoch, key), reader.size(index)
        kinds = [(self.global_crop, self.global_size)] * 2 + [(self.local_crop, self.local_size)] * self.local_crops
        boxes = [(random_box(rng, image_size, crop), size) for crop, size in kinds]
        image = reader.image(index, at_least=required_size((box, (size, size)) for box, size in boxes))
        crops = [resize_box(image, box, (size, size)) for box, size in boxes]
        sample = {"key": key, "global": np.stack(crops[:2])}
        if self.local_crops:
            sample["local"] = np.stack(crops[2:])
        sample["color"] = np.stack([color_matrix(rng, self.color) for _ in crops])
        return sample


def random_box(rng: np.random.Generator, size: tuple[int, int], crop: Crop) -> Box:
    """Draw a box with its edges on the pixels of an image of this height and width."""
    return snap_to_pixels(random_resized_crop(rng, aspect=size[1] / size[0], **vars(crop)), size)


def load_crop(images: ImageSequence, index: int, box: Box, size: int) -> UInt8[np.ndarray, "3 {size} {size}"]:
    """Load a box of an image, resized to a square. The image is decoded at the smallest sufficient size."""
    image = images.image(index, at_least=required_size([(box, (size, size))]))
    return resize_box(image, box, (size, size))


def color_matrix(rng: np.random.Generator, color: ColorJitter) -> Float[np.ndarray, "3 4"]:
    """Draw one affine map of RGB in [0, 1] that changes brightness, contrast, saturation and hue.

    Contrast scales the distance to middle gray. Saturation scales the distance to the luma. Hue is a rotation about the
    gray axis. `apply_color_matrix` applies the map on the device.
    """

    def draw_factor(spread: float) -> float:
        return rng.uniform(max(0.0, 1 - spread), 1 + spread)

    gain, contrast = draw_factor(color.brightness), draw_factor(color.contrast)
    saturation = draw_factor(color.saturation)
    angle = rng.uniform(-color.hue, color.hue) * 2 * np.pi
    if rng.uniform() < color.gray:
        saturation = 0.0
    gray_axis = np.full((3, 3), 1 / 3)  # projection onto the gray axis
    cross_product = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    # Rodrigues' formula
    hue_rotation = np.cos(angle) * np.eye(3) + (1 - np.cos(angle)) * gray_axis + np.sin(angle) * cross_product
    matrix = (saturation * np.eye(3) + (1 - saturation) * np.ones((3, 1)) * LUMA) @ hue_rotation * gain * contrast
    shift = np.full((3, 1), 0.5 * (1 - contrast))
    return np.hstack([matrix, shift]).astype(np.float32)


def apply_color_matrix(images: UInt8[Tensor, "b 3 H W"], matrix: Float[Tensor, "b 3 4"]) -> UInt8[Tensor, "b 3 H W"]:
    """Apply a matrix of `color_matrix` to each image, and clip the result to 0...255."""
    x = torch.einsum("bij,bjhw->bihw", matrix[:, :, :3], images.float()) + 255 * matrix[:, :, 3, None, None]
    return x.round().clamp(0, 255).to(torch.uint8)


@cache
def build_rand_augment(options: RandAugment, img_size: int) -> Callable[[Image.Image], Image.Image]:
    """Build timm's RandAugment as `timm.data.create_transform` does for this size and bicubic interpolation."""
    name = f"rand-m{options.magnitude}-n{options.operations}-mstd{options.magnitude_std:g}-inc1"
    fill_color = tuple(round(255 * mean) for mean in IMAGENET_DEFAULT_MEAN)  # of pixels outside of the moved image
    hparams = {
        "translate_const": int(MAX_SHIFT * img_size),
        "img_mean": fill_color,
        "interpolation": Image.Resampling.BICUBIC,
    }
    transform = rand_augment_transform(name, hparams)
    for operation in transform.ops:
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = posterize
    return transform


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Posterize as timm does, but keep at least one bit. timm may keep zero bits, which Pillow 13 refuses."""
    return ImageOps.posterize(image, max(1, bits))
