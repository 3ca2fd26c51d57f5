"""Features of a frozen network: every image of a split through it once, in order, whatever the memory.

- `extract`: stream a reader through a function images -> vectors, in the evaluation view or in seeded random views,
  into a file.
- `CenterView`, `RandomView`: the two views of classification; `WholeView`: what part scores see, and its mask's counts.
- `seen`: images -> class token and patch tokens, for a ViT; `pooled`: one of them, the mean of the patches, or both.
- `labeled_splits`, `masked_splits`: train and val of a dataset, its shards verified, or one sentence on why it cannot
  be scored.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from semmae.core import distributed
from semmae.core.async_copy import to_device
from semmae.core.rng import numpy_generator
from semmae.data.crops import FULL_IMAGE, Box, channels_first, resample_box
from semmae.data.dataset import ImageSequence, Reader, verify_shards
from semmae.data.loader import batches
from semmae.data.transforms import Crop, load_crop, random_box
from semmae.evaluation import part_metrics
from semmae.evaluation.mapped_rows import Rows
from semmae.models import vit

CROP = 224 / 256  # the share of the short side that the evaluation view keeps
CROPS = Crop(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5)  # the random views of a linear probe (MAE, table 10)

Pool = Literal["class", "patch_mean", "both"]
Load = Callable[[Reader, int], dict[str, Any]]
Encode = Callable[[UInt8[Tensor, "b 3 s s"]], Float[Tensor, "b d"]]
See = Callable[[UInt8[Tensor, "b 3 s s"]], tuple[Float[Tensor, "b d"], Float[Tensor, "b n d"]]]


@dataclass(frozen=True)
class CenterView:
    """The short side resized to img_size * 256 / 224, then the center; one resampling instead of two."""

    img_size: int

    def __call__(self, images: ImageSequence, index: int) -> dict[str, Any]:
        image = images.image(index)
        side = CROP * min(image.shape[:2])
        height, width = side / image.shape[0], side / image.shape[1]
        box = Box((1 - height) / 2, (1 - width) / 2, height, width, flip=False)
        return {"image": channels_first(resample_box(image, box, (self.img_size, self.img_size)))}


@dataclass(frozen=True)
class RandomView:
    """RandomResizedCrop and flip, drawn from (seed, view, key)."""

    img_size: int
    seed: int
    view: int

    def __call__(self, reader: Reader, index: int) -> dict[str, Any]:
        rng = numpy_generator(self.seed, "view", self.view, reader.keys[index])
        return {"image": load_crop(reader, index, random_box(rng, reader.size(index), CROPS), self.img_size)}


@dataclass(frozen=True)
class RandomViews:
    """The random view of each epoch in several sizes, with key and label: what a training step takes."""

    sizes: tuple[int, ...]
    seed: int

    def __call__(self, reader: Reader, index: int, epoch: int) -> dict[str, Any]:
        views = {f"image{size}": RandomView(size, self.seed, epoch)(reader, index)["image"] for size in self.sizes}
        return {"key": reader.keys[index], "label": reader.labels[index], **views}


@dataclass(frozen=True)
class WholeView:
    """The whole image resized, not cropped, and how its mask's labels lie in the cells of the grid."""

    img_size: int
    grid: tuple[int, int]
    num_classes: int

    def __call__(self, reader: Reader, index: int) -> dict[str, Any]:
        return {"image": load_crop(reader, index, FULL_IMAGE, self.img_size), "counts": self.counts(reader, index)}

    def counts(self, reader: Reader, index: int) -> Integer[np.ndarray, "n g"]:
        """The pixels of each label in each cell, of a sample that has a mask."""
        mask = reader.mask(index)
        assert mask is not None, f"{reader.keys[index]} has no mask; select with masked_splits"
        return part_metrics.cell_counts(mask, grid=self.grid, num_classes=self.num_classes)


def extract(
    encode: Encode,
    reader: Reader,
    *,
    img_size: int,
    batch_size: int,
    workers: int,
    views: int | None = None,
    seed: int = 0,
    file: Path | None = None,
) -> Float[Tensor, "*v n d"]:
    """The features of every sample in the reader's order, on the CPU: of the evaluation view, or `views` random ones.

    Random views come stacked before the samples, (v, n, d). The result lies in a file, memory holds one batch. A named
    `file` is kept, and what a killed process has put there is taken as it is.
    """
    loads: list[Load] = [RandomView(img_size, seed, view) for view in range(views or 0)] or [CenterView(img_size)]
    n = len(reader)
    with torch.inference_mode():
        rows = Rows(encode(torch.zeros(1, 3, img_size, img_size, dtype=torch.uint8)).shape[1], file)
        first, start = divmod(len(rows), n)
        start -= start % batch_size  # the same batches as without the kill, since others may round differently
        rows.keep(first * n + start)
        for load in loads[first:]:
            for batch in batches(reader, np.arange(start, n), load, batch_size=batch_size, workers=workers):
                found = encode(batch["image"])
                if not found.isfinite().all():
                    bad = len(rows) % n + int((~found.isfinite()).any(1).nonzero()[0])
                    raise ValueError(f"the features of {reader.keys[bad]} are not finite; train the network again")
                rows.append(found)
            start = 0
    features = rows.tensor()
    return features if views is None else features.unflatten(0, (views, n))


def pooled(
    network: vit.Network, *, pool: Pool, device: torch.device, precision: distributed.Precision = "fp32"
) -> Encode:
    """Images -> vectors by a frozen ViT; see `pooling`."""
    return pooling(seen(network, device=device, precision=precision), pool)


def pooling(see: See, pool: Pool) -> Encode:
    """Images -> vectors by what a network sees: `class` token, `patch_mean` of the patch tokens, or `both` of them."""

    def encode(images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        cls, patch = see(images)
        mean = patch.mean(1)
        return {"class": cls, "patch_mean": mean, "both": torch.cat([cls, mean], dim=1)}[pool]

    return encode


def seen(network: vit.Network, *, device: torch.device, precision: distributed.Precision) -> See:
    """Images -> class token and patch tokens by a frozen ViT."""
    network = network.to(device).eval()
    vit.use_fastest_attention(network, device)

    @torch.no_grad()
    def see(images: UInt8[Tensor, "b 3 s s"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n d"]]:
        with distributed.autocast(device, precision):
            tokens = vit.encode_tokens(network, vit.normalize(to_device(device, images))).float()
        return tokens[:, 0], tokens[:, network.num_prefix_tokens :]

    return see


def labeled_splits(dataset: Path) -> tuple[Reader, Reader]:
    """The labeled samples of train and of val; ValueError if there are none, a label has no name, or val shows a class
    that train lacks.
    """
    train, val = (_kept(dataset, split, lambda reader: reader.labels >= 0, "labels") for split in ("train", "val"))
    for split, reader in (("train", train), ("val", val)):
        if (highest := int(reader.labels.max())) >= reader.num_classes:
            raise ValueError(
                f"{dataset}: {split} has the label {highest}, but shards.json names {reader.num_classes} classes; "
                f"write the dataset again (dvc repro -f shards@{dataset.name})"
            )
    if missing := sorted(set(val.labels) - set(train.labels)):
        names = ", ".join(val.class_names[label] for label in missing[:5])
        raise ValueError(
            f"{dataset}: val shows classes that train lacks ({names}), which nothing can learn; add images of "
            f"them to train, or take them out of val, in the sources of shards.datasets.{dataset.name}"
        )
    return train, val


def masked_splits(dataset: Path) -> tuple[Reader, Reader]:
    """The samples with masks of train and of val; ValueError if there are none or the masks show no object."""
    train, val = (_kept(dataset, split, lambda reader: reader.has_mask, "masks") for split in ("train", "val"))
    if train.mask_kind not in ("foreground", "parts"):
        raise ValueError(f"{dataset}: its masks are of kind {train.mask_kind}; part scores need foreground or parts")
    return train, val


def _kept(dataset: Path, split: str, usable: Callable[[Reader], np.ndarray], what: str) -> Reader:
    reader = Reader(dataset, split)
    verify_shards(dataset)
    ids = np.flatnonzero(usable(reader))
    if not len(ids):
        raise ValueError(f"{dataset}: no sample of {split} has {what}; choose another dataset in params.yaml")
    return reader.select(ids)
