"""Features of a frozen network: every image of a split through it once, in order, whatever the memory.

- `extract`: stream a reader through a function images -> vectors, in the evaluation view or in seeded random views.
- `CentreView`, `RandomView`: the two views of classification; `WholeView`: what part scores see, and its mask's counts.
- `pooled`: that function for a ViT: its class token, the mean of its patch tokens, or both side by side.
- `labelled_splits`, `masked_splits`: train and val of a dataset, or one sentence on why it cannot be scored.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semmae import dist, part_metrics, vit
from semmae.augment import WHOLE, Box, crop_image, random_resized_crop
from semmae.reader import Reader, batches
from semmae.rng import numpy_generator

CROP = 224 / 256  # the share of the short side that the evaluation view keeps
SCALE, RATIO, FLIP = (0.08, 1.0), (3 / 4, 4 / 3), 0.5  # the random views of a linear probe (MAE, table 10)

Pool = Literal["class", "patch_mean", "both"]
Load = Callable[[Reader, int], dict[str, Any]]
Encode = Callable[[UInt8[Tensor, "b 3 s s"]], Float[Tensor, "b d"]]


@dataclass(frozen=True)
class CentreView:
    """The short side resized to img_size * 256 / 224, then the centre; one resampling instead of two."""

    img_size: int

    def __call__(self, reader: Reader, index: int) -> dict[str, Any]:
        image = reader.image(index)
        side = CROP * min(image.shape[:2])
        height, width = side / image.shape[0], side / image.shape[1]
        box = Box((1 - height) / 2, (1 - width) / 2, height, width, flip=False)
        return {"image": _pixels(image, box, self.img_size)}


@dataclass(frozen=True)
class RandomView:
    """RandomResizedCrop and flip, drawn from (seed, view, key)."""

    img_size: int
    seed: int
    view: int

    def __call__(self, reader: Reader, index: int) -> dict[str, Any]:
        image = reader.image(index)
        rng = numpy_generator(self.seed, "view", self.view, reader.keys[index])
        aspect = image.shape[1] / image.shape[0]
        box = random_resized_crop(rng, aspect=aspect, scale=SCALE, ratio=RATIO, flip=FLIP)
        return {"image": _pixels(image, box, self.img_size)}


@dataclass(frozen=True)
class WholeView:
    """The whole image resized, not cropped, and how its mask's labels lie in the cells of the grid."""

    img_size: int
    grid: tuple[int, int]
    num_classes: int

    def __call__(self, reader: Reader, index: int) -> dict[str, Any]:
        return {"image": _pixels(reader.image(index), WHOLE, self.img_size), "counts": self.counts(reader, index)}

    def counts(self, reader: Reader, index: int) -> Integer[np.ndarray, "n g"]:
        """The pixels of each label in each cell, of a sample that has a mask."""
        mask = reader.mask(index)
        assert mask is not None, f"{reader.keys[index]} has no mask; select with masked_splits"
        return part_metrics.cell_counts(mask, grid=self.grid, num_classes=self.num_classes)


@torch.inference_mode()
def extract(
    encode: Encode,
    reader: Reader,
    *,
    img_size: int,
    batch_size: int,
    workers: int,
    views: int | None = None,
    seed: int = 0,
) -> Float[Tensor, "*v n d"]:
    """The features of every sample in the reader's order, on the CPU: of the evaluation view, or `views` random ones.

    Random views come stacked before the samples, (v, n, d). Beyond the result, memory holds one batch.
    """
    loads: list[Load] = [RandomView(img_size, seed, view) for view in range(views or 0)] or [CentreView(img_size)]
    features = torch.empty(0)
    for view, load in enumerate(loads):
        start = 0
        for batch in batches(reader, np.arange(len(reader)), load, batch_size=batch_size, workers=workers):
            found = encode(batch["image"])
            if not found.isfinite().all():
                bad = start + int((~found.isfinite()).any(1).nonzero()[0])
                raise ValueError(f"the features of {reader.keys[bad]} are not finite; train the network again")
            if not features.numel():
                features = torch.empty(len(loads), len(reader), found.shape[1])
            features[view, start : start + len(found)] = found
            start += len(found)
    return features[0] if views is None else features


def pooled(
    network: VisionTransformer, *, pool: Pool, device: torch.device, precision: dist.Precision = "fp32"
) -> Encode:
    """Images -> vectors by a frozen ViT: `class` token, `patch_mean` of the patch tokens, or `both` concatenated."""
    network = network.to(device).eval()
    vit.use_fastest_attention(network, device)

    def encode(images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        with dist.autocast(device, precision):
            tokens = vit.tokens(network, vit.normalise(images.to(device))).float()
        mean = tokens[:, network.num_prefix_tokens :].mean(1)
        return {"class": tokens[:, 0], "patch_mean": mean, "both": torch.cat([tokens[:, 0], mean], dim=1)}[pool]

    return encode


def labelled_splits(dataset: Path) -> tuple[Reader, Reader]:
    """The labelled samples of train and of val; ValueError if there are none, or val shows a class that train lacks."""
    train, val = (_kept(dataset, split, lambda reader: reader.labels >= 0, "labels") for split in ("train", "val"))
    if missing := sorted(set(val.labels) - set(train.labels)):
        names = ", ".join(val.class_names[label] for label in missing[:5])
        raise ValueError(f"{dataset}: val shows classes that train lacks ({names}); a probe cannot know them")
    return train, val


def masked_splits(dataset: Path) -> tuple[Reader, Reader]:
    """The samples with masks of train and of val; ValueError if there are none or the masks show no object."""
    train, val = (_kept(dataset, split, _has_mask, "masks") for split in ("train", "val"))
    if train.mask_kind not in ("foreground", "parts"):
        raise ValueError(f"{dataset}: its masks are of kind {train.mask_kind}; part scores need foreground or parts")
    return train, val


def _kept(dataset: Path, split: str, usable: Callable[[Reader], np.ndarray], what: str) -> Reader:
    reader = Reader(dataset, split)
    ids = np.flatnonzero(usable(reader))
    if not len(ids):
        raise ValueError(f"{dataset}: no sample of {split} has {what}; choose another dataset in params.yaml")
    return reader.select(ids)


def _has_mask(reader: Reader) -> np.ndarray:
    return np.array([reader.mask(index) is not None for index in range(len(reader))])


def _pixels(image: UInt8[np.ndarray, "H W 3"], box: Box, size: int) -> UInt8[np.ndarray, "3 {size} {size}"]:
    return np.ascontiguousarray(crop_image(image, box, size).transpose(2, 0, 1))
