"""Map the parts of any images: a part method with its teacher, and the labels that they give to images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from semmae.console.tracking import tracked
from semmae.core import distributed
from semmae.core.async_copy import to_device
from semmae.data.crops import FULL_IMAGE, crop_part_map
from semmae.data.loader import batches
from semmae.data.transforms import FullImage
from semmae.exchange.encode import EncodeOptions
from semmae.inference.image_inputs import SizedImages
from semmae.models import vit
from semmae.models.teacher import Teacher, load_teacher
from semmae.parts.part_method import PartMethod
from semmae.parts.part_methods import load_parts
from semmae.parts.truth_parts import TruthParts


@dataclass(frozen=True, repr=False)
class PartMapper:
    """A part method and the teacher that it was learned from, on one device.

    Attributes:
        teacher: The teacher.
        method: The part method.
        device: The device of both.
    """

    teacher: Teacher
    method: PartMethod
    device: torch.device

    def __repr__(self) -> str:
        size, (rows, columns) = self.method.config["img_size"], self.method.grid
        return f"PartMapper({', '.join(self.names)}; {rows} x {columns} patches of images of {size} pixels)"

    @property
    def names(self) -> list[str]:
        """The name of each label: `part 0`, `part 1`, …, and `background` if the background has a label."""
        parts = [f"part {part}" for part in range(self.method.num_parts)]
        return parts if self.method.background is None else [*parts, "background"]

    @property
    def view(self) -> FullImage:
        """The view of an image that the teacher sees: the whole image, resized to a square."""
        return FullImage(self.method.config["img_size"], seed=0, flip=0.0)

    def assign(
        self, images: UInt8[Tensor, "b 3 s s"], precision: distributed.Precision = "fp32"
    ) -> Float[np.ndarray, "b p n"]:
        """Return the probability of every label in each patch, as `PartMethod.assign`."""
        with distributed.autocast(self.device, precision):
            probabilities = self.method.assign(self.teacher.encode(to_device(self.device, images)))
        return probabilities.float().cpu().numpy()

    def assign_all(
        self, images: SizedImages, view: Callable[[SizedImages, int], dict[str, Any]], options: EncodeOptions
    ) -> Iterator[tuple[dict[str, Any], Float[np.ndarray, "b p n"]]]:
        """Yield the batches of all images with the probabilities of their labels. Shows the progress.

        Args:
            images: The images.
            view: Loads an image with `self.view`, and may add values.
            options: The size of a batch, the number of workers, and the precision.
        """
        size = options.batch_size
        loaded = batches(images, np.arange(len(images)), view, batch_size=size, workers=options.workers)
        for batch in tracked(loaded, -(-len(images) // size), f"parts, batches of {size}"):
            yield batch, self.assign(batch["image"], options.precision)


@dataclass(frozen=True, repr=False)
class PartLabels:
    """The parts of some images.

    Attributes:
        labels: The label of each patch. The grid of patches covers the whole image, whatever its aspect ratio.
        names: The name of each label: `part 0`, `part 1`, …, and `background` if the background has a label.
        background: The label of the background; None: it has none.
        sizes: Height and width of each image, in pixels.
    """

    labels: UInt8[np.ndarray, "b h w"]
    names: list[str]
    background: int | None
    sizes: list[tuple[int, int]]

    def __repr__(self) -> str:
        return f"PartLabels({len(self)} images, {self.grid[0]} x {self.grid[1]} patches, {len(self.names)} labels)"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.labels.shape[1], self.labels.shape[2]

    @cached_property
    def shares(self) -> Float[np.ndarray, "b p"]:
        """The share of each label in the area of each image."""
        return np.stack([label_shares(labels, len(self.names)) for labels in self.labels])

    def label_image(self, index: int) -> UInt8[np.ndarray, "H W"]:
        """Return the label of every pixel of an image, at the size of the image."""
        return crop_part_map(self.labels[index], FULL_IMAGE, self.sizes[index])


def label_shares(labels: UInt8[np.ndarray, "h w"], num_labels: int) -> Float[np.ndarray, " p"]:
    """Return the share of each label in a part map."""
    return np.bincount(labels.ravel(), minlength=num_labels) / labels.size


def load_part_mapper(parts: Path, teacher: Teacher | Path, device: distributed.Device) -> PartMapper:
    """Load a part method, and its teacher unless it is given.

    Raises:
        ValueError: A file is missing or damaged, the method was learned from another teacher, or it needs masks.
    """
    chosen = distributed.choose_device(device)
    teacher = load_teacher(teacher) if isinstance(teacher, Path) else teacher
    method = load_parts(parts, teacher=teacher.digest)
    if isinstance(method, TruthParts):
        raise ValueError(
            f"{parts} holds the part method truth, which copies masks; expected a method that labels any image. "
            "Choose another parts.method and run: dvc repro parts"
        )
    vit.use_fastest_attention(teacher, chosen, frozen_grid=method.config["grid"])
    return PartMapper(teacher.to(chosen), method.to(chosen), chosen)
