"""Speeds of this machine with a person's images, measured on a few steps."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from semmae.core import optim
from semmae.core.compute import native_precision
from semmae.core.distributed import autocast, choose_device
from semmae.data import decoding
from semmae.data.transforms import Crop, FullImage, OneCrop
from semmae.models import mae, masking, vit
from semmae.models.teacher import Teacher
from semmae.parts.part_learner import PartLearner
from semmae.project.image_survey import ImageSample
from semmae.project.settings import NetworkShape

MAX_SECONDS = 1.0  # per measurement
ENCODED = 16  # images per batch
CROP = Crop(scale=(0.2, 1.0), ratio=(0.75, 1.3333), flip=0.5)


@dataclass(frozen=True)
class Speeds:
    """Seconds that the pieces of the pipeline take.

    Attributes:
        startup: Start of a stage's process.
        convert: Reading, decoding and storing an image, in one process.
        step: A training step of MAE, with loading its images.
        encode: Encoding an image at the size of the encoder's images, with loading it.
        map_image: Encoding an image at the size of part maps, with loading it.
        fit: Fitting parts, per image that they are fitted to.
    """

    startup: float
    convert: float
    step: float
    encode: float
    map_image: float
    fit: float


class BlobImages:
    """Image files as an `ImageSequence`, wherever they are.

    Args:
        sample: Images that can be decoded.
    """

    def __init__(self, sample: ImageSample) -> None:
        self.sample, self.keys = sample, [str(index) for index in range(len(sample.blobs))]

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, index: SupportsIndex, *, at_least: tuple[int, int] = (0, 0)) -> UInt8[np.ndarray, "h w 3"]:
        """Decode an image; see `ImageSequence.image`."""
        return decoding.to_rgb(self.sample.blobs[index].read(), at_least=at_least)

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        """Height and width of an image in pixels; datasets have them in their index."""
        return self.sample.sizes[index]


def measure_step(shape: NetworkShape, *, batch_size: int, img_size: int) -> float:
    """Measure a training step of MAE on random pixels, without loading.

    Raises:
        torch.cuda.OutOfMemoryError: The batch does not fit into the memory of the GPU.
    """
    device = choose_device("auto")
    encoder = vit.build({"img_size": img_size, **vars(shape.vit)})
    model = mae.MAE(encoder, **vars(shape.decoder)).to(device).train()
    vit.use_fastest_attention(model, device)
    optimizer = optim.adamw(model, weight_decay=0.05, betas=(0.9, 0.95))
    num_patches = (img_size // shape.vit.patch_size) ** 2
    num_masked = masking.num_masked(num_patches, 0.75)
    pixels = torch.randint(0, 256, (batch_size, 3, img_size, img_size), dtype=torch.uint8, device=device)
    noise = torch.rand(batch_size, num_patches, device=device)
    mask = noise >= noise.sort(1).values[:, num_patches - num_masked, None]

    def step() -> None:
        images = vit.normalize(pixels)
        with autocast(device, native_precision("auto")):
            pred = model(images, mask, num_masked, None, num_masked)
        loss = mae.loss(pred, images, mask, patch_size=shape.vit.patch_size, norm_pix_loss=True)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()

    return _shortest_seconds(step)


def measure_crops(images: BlobImages, img_size: int) -> float:
    """Measure the loading of a training crop, per image."""
    view, indices = OneCrop(0, CROP, [img_size]), itertools.cycle(range(len(images)))
    return _shortest_seconds(lambda: view(images, next(indices), 0), count=len(images))  # type: ignore[arg-type]


def measure_encoding(images: BlobImages, teacher: Teacher, img_size: int) -> tuple[float, Float[Tensor, "s n d"]]:
    """Measure the loading and encoding of a whole image, per image; also return the patch tokens of some images."""
    device, view = choose_device("auto"), FullImage(img_size, 0, 0.0)
    teacher.to(device)
    vit.use_fastest_attention(teacher, device, frozen_grid=teacher.grid(img_size))
    tokens, indices = [], itertools.cycle(range(len(images)))

    def encode() -> None:
        pixels = np.stack([view(images, next(indices))["image"] for _ in range(ENCODED)])
        tokens.append(teacher.encode(torch.from_numpy(pixels).to(device)).patch.cpu())

    return _shortest_seconds(encode) / ENCODED, torch.cat(tokens)


def measure_fit(tokens: Float[Tensor, "s n d"], config: dict[str, Any]) -> float:
    """Measure the fit of a part learner, per image that it is fitted to."""
    start = time.perf_counter()
    PartLearner(config).fit(tokens, seed=0)
    return (time.perf_counter() - start) / len(tokens)


def _shortest_seconds(function: Callable[[], object], *, count: int = 5) -> float:
    """Return the shortest time of calls after the first, which warms up; other processes disturb it least."""
    function()
    times: list[float] = []
    end = time.perf_counter() + MAX_SECONDS
    while len(times) < max(count, 2) and (not times or time.perf_counter() < end):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)
