"""What a score is worth: the lines that need no learning, or that no learning without labels could pass.

For classification, in place of an encoder (`beside` has them ready):
- `thumbnail`: the pixels of a 16 x 16 image.
- `untrained`: the same architecture with fresh weights.

For parts, in place of the part learner, each a label per patch:
- `patch_colours`: mean and deviation of each patch's RGB, for k-means.
- `CentreMask`: where the foreground of train mostly is, cut at the threshold that does best on train. (The map of the
  most frequent true label at each place is `part_metrics.majority` of the counts of all of train.)
"""

from typing import Any

import numpy as np
import timm
import torch
from einops import rearrange
from jaxtyping import Float, Integer, UInt8
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semmae import vit
from semmae.features import Encode, Pool, pooled
from semmae.part_metrics import LEVELS, contingency, foreground_iou
from semmae.rng import fold

THUMBNAIL = 16  # pixels on a side
THRESHOLDS = np.arange(1, 20) / 20


def thumbnail(images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
    """The pixels themselves, in [0, 1]."""
    return images.flatten(1).float() / 255


def untrained(config: dict[str, Any], *, seed: int) -> VisionTransformer:
    """The network that an encoder's or a teacher's `config` describes, as it is before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(seed, "untrained"))
        if "timm" in config:
            size = config["img_size"]
            network = timm.create_model(config["timm"], num_classes=0, img_size=size, dynamic_img_size=True)
        else:
            network = vit.build(config)
    return network.eval().requires_grad_(False)


def beside(config: dict[str, Any], *, pool: Pool, seed: int, device: torch.device) -> dict[str, tuple[Encode, int]]:
    """The lines to print beside the encoder of that `config`: for each a function images -> features, and their size."""
    fresh = pooled(untrained(config, seed=seed), pool=pool, device=device)
    return {"thumbnails": (thumbnail, THUMBNAIL), "untrained": (fresh, config["img_size"])}


def patch_colours(images: UInt8[Tensor, "b 3 H W"], grid: tuple[int, int]) -> Float[Tensor, "b n 6"]:
    """Mean and standard deviation of R, G and B in every patch, in [0, 1]."""
    pixels = rearrange(images.float() / 255, "b c (h p) (w q) -> b (h w) (p q) c", h=grid[0], w=grid[1])
    return torch.cat([pixels.mean(2), pixels.std(2, correction=0)], dim=2)


class CentreMask:
    """One foreground mask for every image; `share` is the part of train's labelled pixels in each cell that are foreground.

    Show it train, then val, as counts of pixels per cell and true label.
    """

    def __init__(self, share: Float[np.ndarray, " n"]) -> None:
        self.masks = share >= THRESHOLDS[:, None]  # (t, n)
        self.train: dict[str, list[np.ndarray]] = {level: [] for level in LEVELS}
        self.val: dict[str, list[np.ndarray]] = {level: [] for level in LEVELS}

    def add_train(self, counts: Integer[np.ndarray, "n g"]) -> None:
        """One image of train."""
        self._add(self.train, counts)

    def add_val(self, counts: Integer[np.ndarray, "n g"]) -> None:
        """One image of val."""
        self._add(self.val, counts)

    def scores(self) -> dict[str, dict[str, float]]:
        """fg_iou per level: val's mean under the threshold that is best on train."""
        best = {level: int(np.mean(self.train[level], axis=0).argmax()) for level in LEVELS}
        return {level: {"fg_iou": float(np.mean(self.val[level], axis=0)[best[level]])} for level in LEVELS}

    def _add(self, ious: dict[str, list[np.ndarray]], counts: np.ndarray) -> None:
        for level in LEVELS:
            tables = [contingency(mask.astype(int), counts, num_labels=2, level=level) for mask in self.masks]
            if tables[0][:, 1:].any():
                ious[level].append([foreground_iou(table, np.array([False, True])) for table in tables])
