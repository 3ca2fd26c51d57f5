"""Semantic segmentation of images of any size by sliding windows, and its evaluation on a split.

A predictor maps windows to logits on a coarser grid, for one or more variants at once (learning rates, numbers of
neighbors). Logits are resized bilinearly to the window, averaged over overlapping windows, and resized to the mask.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from semmae.core import distributed
from semmae.data.dataset import Reader
from semmae.data.decoding import IGNORE
from semmae.data.loader import batches
from semmae.evaluation.segmentation import metrics
from semmae.evaluation.segmentation.transforms import WholeImage

T = TypeVar("T")
Predictor = Callable[[UInt8[Tensor, "b 3 s s"]], Float[Tensor, "b l c h w"]]


@dataclass(frozen=True)
class WindowGrid:
    """The positions of the square windows of an image.

    Attributes:
        short_side: Short side of the resized image in pixels.
        side: Side of a window in pixels.
        stride: Distance between neighboring windows in pixels.
    """

    short_side: int
    side: int
    stride: int

    def __post_init__(self) -> None:
        if not self.stride <= self.side <= self.short_side:
            raise ValueError(
                f"segment: stride is {self.stride}, crop is {self.side} and short_side is {self.short_side}; expected "
                "stride <= crop <= short_side. If crop is null, it is the img_size of the encoder"
            )

    def corners(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return the top left corner of every window of an image of this size, row by row."""
        rows, columns = (window_starts(extent, self.side, self.stride) for extent in (height, width))
        return [(y, x) for y in rows for x in columns]


@dataclass(frozen=True)
class SlidingWindowOptions:
    """Settings of inference with sliding windows.

    Attributes:
        batch_size: Windows per batch.
        workers: Processes that load images.
        exit_if_stopped: Called before every batch; exits if a stop signal was received.
    """

    grid: WindowGrid
    batch_size: int
    workers: int
    world: distributed.World
    exit_if_stopped: Callable[[], None] = lambda: None


def window_starts(length: int, side: int, stride: int) -> list[int]:
    """Return the first pixel of each window along an axis; the last window ends at the border."""
    return [min(start, length - side) for start in range(0, length - side + stride, stride)]


def sliding_window_logits(
    predict: Predictor, images: list[UInt8[Tensor, "3 _ _"]], grid: WindowGrid, *, batch_size: int
) -> list[Float[Tensor, "l c _ _"]]:
    """Compute the logits of every pixel: the mean over the windows that cover it.

    A batch may hold windows of several small images.
    """
    side, totals = grid.side, [torch.zeros(())] * len(images)
    positions = [
        (number, y, x) for number, image in enumerate(images) for y, x in grid.corners(image.shape[1], image.shape[2])
    ]
    coverage = [image.new_zeros(image.shape[1:], dtype=torch.float32) for image in images]
    for start in range(0, len(positions), batch_size):
        batch = positions[start : start + batch_size]
        logits = predict(torch.stack([images[number][:, y : y + side, x : x + side] for number, y, x in batch]))
        for (number, y, x), window in zip(batch, logits, strict=True):
            if not totals[number].ndim:
                totals[number] = window.new_zeros(*window.shape[:2], *coverage[number].shape)
            totals[number][:, :, y : y + side, x : x + side] += resize_logits(window, (side, side))
            coverage[number][y : y + side, x : x + side] += 1
    return [total.div_(count) for total, count in zip(totals, coverage, strict=True)]


def resize_logits(logits: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c H W"]:
    """Resize logits bilinearly to (rows, columns)."""
    if logits.shape[2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def pixel_loss(logits: Float[Tensor, "b c h w"], mask: UInt8[Tensor, "b H W"]) -> Float[Tensor, ""]:
    """Compute the mean cross entropy over the labeled pixels; 0 without labeled pixels."""
    resized = resize_logits(logits.float(), (mask.shape[1], mask.shape[2]))
    total = F.cross_entropy(resized, mask.long(), ignore_index=IGNORE, reduction="sum")
    return total / (mask != IGNORE).sum().clamp(min=1)


def predict_labels(
    predict: Predictor, reader: Reader, options: SlidingWindowOptions
) -> Iterator[tuple[int, Integer[Tensor, "l h w"], UInt8[Tensor, "h w"]]]:
    """Yield the index, the predicted classes of each variant, and the mask of every sample of this rank."""
    grid, world = options.grid, options.world
    indices = np.arange(world.rank, len(reader), world.size)
    load = WholeImage(grid.short_side)
    loaded = zip(indices.tolist(), batches(reader, indices, load, batch_size=1, workers=options.workers), strict=True)
    for group in _group(loaded, lambda item: len(grid.corners(*item[1]["image"].shape[2:])), options.batch_size):
        options.exit_if_stopped()
        images = [sample["image"][0].to(world.device) for _, sample in group]
        with torch.inference_mode():
            all_logits = sliding_window_logits(predict, images, grid, batch_size=options.batch_size)
        for (index, sample), logits in zip(group, all_logits, strict=True):
            mask = sample["mask"][0].to(world.device)
            yield index, resize_logits(logits, (mask.shape[0], mask.shape[1])).argmax(1), mask


def evaluate(
    predict: Predictor, reader: Reader, options: SlidingWindowOptions, *, num_classes: int
) -> Integer[np.ndarray, "l n 3 c"]:
    """Compute `metrics.count` of every image and variant.

    Each rank predicts a part of the images. All ranks return the counts of all images.

    Raises:
        ValueError: There are fewer images than processes.
    """
    world = options.world
    if len(reader) < world.size:
        raise ValueError(
            f"{len(reader)} image(s) to score, but {world.size} processes; expected at most one process per image"
        )
    counts: Tensor | None = None
    for index, labels, mask in predict_labels(predict, reader, options):
        if counts is None:
            counts = torch.zeros(len(labels), len(reader), 3, num_classes, dtype=torch.float64, device=mask.device)
        for variant, label in enumerate(labels):
            counts[variant, index] = metrics.count(label, mask, num_classes=num_classes).double()
    assert counts is not None
    total = distributed.mean(counts, world) * world.size  # the counts of images of other ranks are 0
    return total.round().long().cpu().numpy()


def _group(items: Iterator[T], weight: Callable[[T], int], min_weight: int) -> Iterator[list[T]]:
    """Yield lists of consecutive items with a total weight of at least `min_weight`; the last list may have less."""
    group: list[T] = []
    for item in items:
        group.append(item)
        if sum(map(weight, group)) >= min_weight:
            yield group
            group = []
    if group:
        yield group
