"""The functions of the package for notebooks and scripts, as `semmae.<name>`.

Every function that takes images takes one image or several: paths, Pillow images, numpy arrays or torch tensors, of any
size (`semmae.inference.image_inputs.ImageList`), or a dataset. Results always have one row per image.
"""

import os
from pathlib import Path
from types import UnionType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from semmae.console.tracking import tracked
from semmae.core import distributed
from semmae.data.dataset import Reader
from semmae.data.loader import batches
from semmae.evaluation.views import CenterView
from semmae.exchange.encode import EncodeOptions, class_token_and_patch_mean
from semmae.inference.image_inputs import Images, as_images
from semmae.inference.part_mapper import PartLabels, PartMapper, load_part_mapper
from semmae.models import frozen_encoder, vit
from semmae.models.frozen_encoder import FrozenEncoder
from semmae.models.teacher import Teacher
from semmae.models.teacher import load_teacher as load_cpu_teacher
from semmae.report import overlays
from semmae.report.figures import TILE
from semmae.report.palettes import make_palette
from semmae.report.picture_grid import arrange_grid

Folder = str | os.PathLike[str]
PAIRS_PER_ROW = 3  # of an image and its parts in a picture


class ImageFeatures(NamedTuple):
    """The features of images, one row per image.

    Attributes:
        class_token: The output of the class token. MAE does not train it.
        patch_mean: The mean output of the patch tokens.
    """

    class_token: Float[np.ndarray, "b d"]
    patch_mean: Float[np.ndarray, "b d"]


def open_dataset(folder: Folder, split: str | None = None) -> Reader:
    """Open a dataset that the stage `shards` has written.

    Args:
        folder: Its folder, for example data/shards/main.
        split: `train`, `val` or `test`; None opens all splits.

    Returns:
        The samples: `len(dataset)`, `dataset.image(i)`, `dataset.mask(i)`, `dataset.labels[i]`, `dataset.keys[i]`.

    Raises:
        ValueError: The folder is not a dataset, or the dataset has no such split.
    """
    if not (Path(folder) / "index.parquet").is_file():
        raise ValueError(
            f"{folder} is not a dataset; expected an output of the stage shards, such as data/shards/main. A folder of "
            "images needs no dataset: pass the paths of its files to map_parts or encode"
        )
    return Reader(Path(folder), split)


def load_teacher(folder: Folder = "data/teacher", *, device: distributed.Device = "auto") -> Teacher:
    """Load a teacher.

    Args:
        folder: The output of the stage `teacher`.
        device: `auto`, `cpu` or `cuda`; auto is the GPU, if there is one.

    Returns:
        The teacher, for `load_part_learner` and `encode`. `Teacher.encode` also returns its tokens and attention.

    Raises:
        ValueError: A file is missing or damaged.
    """
    return load_cpu_teacher(Path(folder)).to(distributed.choose_device(device))


def load_part_learner(
    folder: Folder = "data/parts",
    teacher: Teacher | Folder = "data/teacher",
    *,
    device: distributed.Device = "auto",
) -> PartMapper:
    """Load a part learner with its teacher.

    Args:
        folder: The output of the stage `parts`.
        teacher: The output of the stage `teacher`, or the result of `load_teacher`.
        device: `auto`, `cpu` or `cuda`; auto is the GPU, if there is one.

    Returns:
        The part learner and the teacher, for `map_parts`.

    Raises:
        ValueError: A file is missing or damaged, or the parts were learned from another teacher.
    """
    return load_part_mapper(Path(folder), teacher if isinstance(teacher, Teacher) else Path(teacher), device)


def load_encoder(folder: Folder = "data/pretrain", *, device: distributed.Device = "auto") -> FrozenEncoder:
    """Load a pretrained encoder.

    Args:
        folder: The output of the stage `pretrain`, of `semmae import`, or of the stage `teacher`.
        device: `auto`, `cpu` or `cuda`; auto is the GPU, if there is one.

    Returns:
        The encoder, for `encode`. Its `network` is a timm `VisionTransformer`.

    Raises:
        ValueError: A file is missing or damaged.
    """
    encoder = frozen_encoder.load_encoder(Path(folder))
    encoder.network.to(distributed.choose_device(device))
    return encoder


def map_parts(images: Images, learner: PartMapper, *, batch_size: int = 64) -> PartLabels:
    """Map the parts of images. The teacher sees whole images, resized to a square, as in the stage `part_maps`.

    Args:
        images: One image, several images, or a dataset.
        learner: The result of `load_part_learner`.
        batch_size: Images per batch.

    Returns:
        The labels of the patches of each image.

    Raises:
        ValueError: An image cannot be read, or has a wrong shape or range of values.
        TypeError: An image or `learner` has a wrong type.
    """
    _require("learner", learner, PartMapper, "load_part_learner")
    sequence = as_images(images)
    options = EncodeOptions(batch_size, workers=0, device=learner.device, precision="fp32")
    probabilities = [part for _, part in learner.assign_all(sequence, learner.view, options)]
    labels = np.concatenate([part.argmax(1) for part in probabilities]).astype(np.uint8)
    sizes = [sequence.size(index) for index in range(len(sequence))]
    return PartLabels(labels.reshape(-1, *learner.method.grid), learner.names, learner.method.background, sizes)


def draw_parts(images: Images, maps: PartLabels, *, colors: str = "okabe_ito") -> Image.Image:
    """Draw every image beside its parts, above a legend. The background is pale.

    Args:
        images: The images of `maps`, in the same order.
        maps: The result of `map_parts`.
        colors: The palette: okabe_ito or tol_bright.

    Raises:
        ValueError: `images` and `maps` differ in number, or the palette is unknown.
        TypeError: `maps` has a wrong type.
    """
    _require("maps", maps, PartLabels, "map_parts")
    sequence, num_parts = as_images(images), len(maps.names) - (maps.background is not None)
    if len(sequence) != len(maps):
        raise ValueError(f"there are {len(sequence)} images and {len(maps)} part maps; expected a map for each image")
    palette = make_palette(colors, num_parts)
    pictures = []
    for index, labels in enumerate(maps.labels):
        image = sequence.image(index, at_least=(TILE, TILE))
        drawn = overlays.whole_square(image, TILE, labels=labels, colors=palette)
        pictures += [overlays.whole_square(image, TILE), drawn]
    width = 2 * min(len(maps), PAIRS_PER_ROW)
    legend = [(str(part), color) for part, color in enumerate(palette.tolist())]
    rows = [pictures[start : start + width] for start in range(0, len(pictures), width)]
    return arrange_grid(rows, ["image", "parts"] * (width // 2), legends={"parts": legend})


def encode(images: Images, encoder: FrozenEncoder | Teacher, *, batch_size: int = 64) -> ImageFeatures:
    """Compute features of images. The encoder sees the center crop of an image, as in the evaluations.

    Args:
        images: One image, several images, or a dataset.
        encoder: The result of `load_encoder` or `load_teacher`.
        batch_size: Images per batch.

    Raises:
        ValueError: An image cannot be read, or has a wrong shape or range of values; or a feature is not finite.
        TypeError: An image or `encoder` has a wrong type.
    """
    _require("encoder", encoder, FrozenEncoder | Teacher, "load_encoder or load_teacher")
    sequence, frozen = as_images(images), FrozenEncoder(encoder.network, encoder.config, encoder.digest)
    device = next(frozen.network.parameters()).device
    options = EncodeOptions(batch_size, workers=0, device=device, precision="fp32")
    vit.use_fastest_attention(frozen.network, device)
    view = CenterView(frozen.config["img_size"])
    loaded = batches(sequence, np.arange(len(sequence)), view, batch_size=batch_size, workers=0)
    tracked_batches = tracked(loaded, -(-len(sequence) // batch_size), f"encode, batches of {batch_size}")
    features = torch.cat(
        [class_token_and_patch_mean(frozen, batch["image"], options) for batch in tracked_batches], dim=1
    )
    if not (finite := features.isfinite().all(2).all(0)).all():
        index = int((~finite).nonzero()[0])
        raise ValueError(f"the features of {sequence.keys[index]} are not finite; train the network again")
    return ImageFeatures(features[0].numpy(), features[1].numpy())


def _require(name: str, value: object, expected: type | UnionType, source: str) -> None:
    """Raise a TypeError unless an argument is the result of another function of this module."""
    if not isinstance(value, expected):
        raise TypeError(f"{name} has the type {type(value).__name__}; expected the result of semmae.{source}")
