"""Semantic segmentation by sliding windows: what a predictor scores on a split, and what needs no predictor.

- `slide`: the windows' scores averaged where they overlap; every pixel is covered, the last window ends at the border.
- `evaluate`: the counts behind mIoU of every image of a split, image by image. `trivial`: lines that look at none.
- `pixel_loss`: what all that learns here learns by.

A predictor turns windows into scores on any coarser grid, of one or more variants (learning rates, numbers of
neighbors) at once; they are made as large as the window, later as the mask, bilinearly, before a class is chosen.
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
from semmae.data.crops import FULL_IMAGE, crop_part_map
from semmae.data.dataset import Reader
from semmae.data.decoding import IGNORE
from semmae.data.loader import batches
from semmae.evaluation.segmentation import metrics
from semmae.evaluation.segmentation.transforms import PLACES, WholeImage, mask_of

BESIDE = ("miou", "pixel_accuracy")  # what is said of a line beside the encoder

T = TypeVar("T")
Predict = Callable[[UInt8[Tensor, "b 3 s s"]], Float[Tensor, "b l c h w"]]


@dataclass(frozen=True)
class Windows:
    """Inference: short side of the resized image, side of the square windows, pixels from one to the next."""

    short_side: int
    side: int
    stride: int

    def __post_init__(self) -> None:
        if not self.stride <= self.side <= self.short_side:
            raise ValueError(
                f"segment: stride is {self.stride}, crop {self.side} and short_side {self.short_side}; they must not "
                "decrease in this order (crop null: img_size of the encoder)"
            )

    def count(self, height: int, width: int) -> int:
        """How many windows an image of that size has."""
        return len(starts(height, self.side, self.stride)) * len(starts(width, self.side, self.stride))


def _groups(items: Iterator[T], weight: Callable[[T], int], full: int) -> Iterator[list[T]]:
    """Runs of items of a total weight of `full` or a little more; the last may weigh less."""
    group: list[T] = []
    for item in items:
        group.append(item)
        if sum(map(weight, group)) >= full:
            yield group
            group = []
    if group:
        yield group


def starts(length: int, side: int, stride: int) -> list[int]:
    """Where windows begin along one axis: every `stride`, the last one so that it ends where the image does."""
    return [min(start, length - side) for start in range(0, length - side + stride, stride)]


def slide(
    predict: Predict, images: list[UInt8[Tensor, "3 _ _"]], windows: Windows, *, batch_size: int
) -> list[Float[Tensor, "l c _ _"]]:
    """The scores of every pixel: the mean over the windows that show it. Batches are of windows, whatever the image."""
    side, totals = windows.side, [torch.zeros(())] * len(images)
    places = [
        (number, y, x)
        for number, image in enumerate(images)
        for y in starts(image.shape[1], side, windows.stride)
        for x in starts(image.shape[2], side, windows.stride)
    ]
    shown = [image.new_zeros(image.shape[1:], dtype=torch.float32) for image in images]
    for first in range(0, len(places), batch_size):
        chosen = places[first : first + batch_size]
        scores = predict(torch.stack([images[number][:, y : y + side, x : x + side] for number, y, x in chosen]))
        for (number, y, x), window in zip(chosen, scores, strict=True):
            if not totals[number].ndim:
                totals[number] = window.new_zeros(*window.shape[:2], *shown[number].shape)
            totals[number][:, :, y : y + side, x : x + side] += enlarged(window, (side, side))
            shown[number][y : y + side, x : x + side] += 1
    return [total.div_(count) for total, count in zip(totals, shown, strict=True)]


def enlarged(scores: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c H W"]:
    """Scores on another grid, bilinearly."""
    if scores.shape[2:] == size:
        return scores
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


def pixel_loss(logits: Float[Tensor, "b c h w"], mask: UInt8[Tensor, "b H W"]) -> Float[Tensor, ""]:
    """The mean cross entropy over the pixels whose mask says anything; 0 where there are none."""
    scores = enlarged(logits.float(), (mask.shape[1], mask.shape[2]))
    total = F.cross_entropy(scores, mask.long(), ignore_index=IGNORE, reduction="sum")
    return total / (mask != IGNORE).sum().clamp(min=1)


@dataclass(frozen=True)
class SlidingWindowOptions:
    """How splits are scored; `exit_if_stopped` is called before every batch, to stop when asked to."""

    windows: Windows
    batch_size: int  # windows at a time
    workers: int
    world: distributed.World
    exit_if_stopped: Callable[[], None] = lambda: None

    def labels(self, predict: Predict, reader: Reader) -> Iterator[tuple[int, Tensor, UInt8[Tensor, "H W"]]]:
        """For every sample of this rank: where it is, the class of each pixel by each variant (l H W), its mask."""
        mine = np.arange(self.world.rank, len(reader), self.world.size)
        load = WholeImage(self.windows.short_side)
        loaded = zip(mine.tolist(), batches(reader, mine, load, batch_size=1, workers=self.workers), strict=True)
        for group in _groups(loaded, lambda sample: self.windows.count(*sample[1]["image"].shape[2:]), self.batch_size):
            self.exit_if_stopped()
            images = [sample["image"][0].to(self.world.device) for _, sample in group]
            with torch.inference_mode():
                scored = slide(predict, images, self.windows, batch_size=self.batch_size)
            for (index, sample), scores in zip(group, scored, strict=True):
                mask = sample["mask"][0].to(self.world.device)
                yield index, enlarged(scores, (mask.shape[0], mask.shape[1])).argmax(1), mask


def evaluate(
    predict: Predict, reader: Reader, how: SlidingWindowOptions, *, num_classes: int
) -> Integer[np.ndarray, "l n 3 c"]:
    """`segmentation_metrics.count` of every image under every variant; all ranks share the work and the result."""
    if len(reader) < how.world.size:
        raise ValueError(f"{len(reader)} image(s) to score are too few for {how.world.size} processes; start fewer")
    counts: Tensor | None = None
    for index, labels, mask in how.labels(predict, reader):
        if counts is None:
            counts = torch.zeros(len(labels), len(reader), 3, num_classes, dtype=torch.float64, device=mask.device)
        for variant, label in enumerate(labels):
            counts[variant, index] = metrics.count(label, mask, num_classes=num_classes).double()
    assert counts is not None
    total = distributed.mean(counts, how.world) * how.world.size  # of images that other ranks have seen: 0 here
    return total.round().long().cpu().numpy()


def trivial(train: Integer[np.ndarray, "n g"], val: Reader, *, seed: int) -> dict[str, dict[str, float]]:
    """What needs no look at the image, from the pixels of each class in the cells of train: its most frequent class
    everywhere, and the most frequent class of each place.
    """
    frequent = train.sum(0).argmax()
    places = np.where(train.any(1), train.argmax(1), frequent).astype(np.uint8).reshape(PLACES)
    counts: dict[str, list[Tensor]] = {"most_frequent": [], "position": []}
    for index in range(len(val)):
        mask = mask_of(val, index)
        guesses = np.full_like(mask, frequent), crop_part_map(places, FULL_IMAGE, mask.shape)
        for line, guess in zip(counts, guesses, strict=True):
            found = metrics.count(torch.from_numpy(guess), torch.from_numpy(mask), num_classes=train.shape[1])
            counts[line].append(found)
    scored = {
        line: metrics.scores(torch.stack(each).numpy(), val.mask_names, seed=seed) for line, each in counts.items()
    }
    return {line: {name: scores.encoder[name] for name in BESIDE} for line, scores in scored.items()}
