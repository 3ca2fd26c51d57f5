"""Images and masks for semantic segmentation: training crops, sliding windows, and what a predictor scores on a split.

- `masked_split`: the samples of a split that have masks, with the pixels of each class, or one sentence why not.
- `TrainCrop`: a random scale, crop and flip that move image and mask together. `WholeImage`: as inference sees it.
- `slide`: the windows' scores averaged where they overlap; every pixel is covered, the last window ends at the border.
- `evaluate`: the counts behind mIoU of every image of a split, image by image; `trivial`: lines that look at none.

A predictor turns windows into scores on any coarser grid, of one or more variants (learning rates, numbers of
neighbours) at once; they are made as large as the window, later as the mask, bilinearly, before a class is chosen.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass as params
from torch import Tensor

from semmae import dist, segmentation_metrics, vit
from semmae.augment import WHOLE, Box, crop_part_map, resize_box
from semmae.images import IGNORE
from semmae.params import STRICT
from semmae.part_metrics import cell_counts
from semmae.reader import Reader, batches
from semmae.rng import numpy_generator

PLACES = (32, 32)  # cells of the position map
GRAY = np.array([round(255 * value) for value in vit.MEAN], dtype=np.uint8)  # zero once normalised: where no image is

BESIDE = ("miou", "pixel_accuracy")  # what is said of a line beside the encoder

Predict = Callable[[UInt8[Tensor, "b 3 s s"]], Float[Tensor, "b l c h w"]]


@params(frozen=True, config=STRICT)
class Crops:
    """Training crops: `zoom` beside the size that inference sees is drawn from a range; probability of a flip."""

    zoom: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    flip: Annotated[float, Field(ge=0, le=1)]


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


@dataclass(frozen=True)
class TrainCrop:
    """A square crop of the image, enlarged at random, and the same crop of its mask, from (seed, epoch, key).

    Where the enlarged image is smaller than the crop there is gray to the right and below, and the mask says nothing.
    """

    seed: int
    crops: Crops
    short_side: int
    side: int

    def __call__(self, reader: Reader, index: int, epoch: int) -> dict[str, Any]:
        image, mask = reader.image(index), _mask(reader, index)
        rng = numpy_generator(self.seed, "crop", epoch, reader.keys[index])
        zoom = rng.uniform(*self.crops.zoom)
        scale = self.short_side * zoom / min(image.shape[:2])
        height, width = (self.side / (scale * extent) for extent in image.shape[:2])  # of the crop, as shares
        top, left = (rng.uniform(0, max(0.0, 1 - share)) for share in (height, width))
        box = Box(top, left, min(1.0, height), min(1.0, width), bool(rng.random() < self.crops.flip))
        rows, columns = (max(1, round(self.side / max(1.0, share))) for share in (height, width))
        pixels, labels = np.tile(GRAY, (self.side, self.side, 1)), np.full((self.side, self.side), IGNORE, np.uint8)
        pixels[:rows, :columns] = resize_box(image, box, (rows, columns))
        labels[:rows, :columns] = crop_part_map(mask, box, (rows, columns))
        return {
            "key": reader.keys[index],
            "image": np.ascontiguousarray(pixels.transpose(2, 0, 1)),
            "mask": labels,
        }


@dataclass(frozen=True)
class WholeImage:
    """The image with its short side resized, its mask as it is."""

    short_side: int

    def __call__(self, reader: Reader, index: int) -> dict[str, Any]:
        image = reader.image(index)
        scale = self.short_side / min(image.shape[:2])
        rows, columns = (max(self.short_side, round(scale * extent)) for extent in image.shape[:2])
        resized = resize_box(image, WHOLE, (rows, columns))
        return {
            "key": reader.keys[index],
            "image": np.ascontiguousarray(resized.transpose(2, 0, 1)),
            "mask": _mask(reader, index),
        }


def masked_split(dataset: Path, split: str) -> tuple[Reader, Integer[np.ndarray, "n g"]]:
    """The samples of a split that have masks, and the pixels of each class in the cells of PLACES, over all of them."""
    reader = Reader(dataset, split)
    if reader.mask_kind is None:
        raise ValueError(f"{dataset} has no masks; segment needs a dataset whose sources have `masks` in params.yaml")
    counts = np.zeros((PLACES[0] * PLACES[1], len(reader.mask_names)), np.int64)
    found = []
    for index in range(len(reader)):
        mask = reader.mask(index)
        if mask is not None:
            counts += cell_counts(mask, grid=PLACES, num_classes=len(reader.mask_names))
            found.append(index)
    if not counts.any():
        raise ValueError(f"{dataset}: no sample of {split} has a mask that says anything; segment cannot use it")
    return reader.select(np.array(found)), counts


def starts(length: int, side: int, stride: int) -> list[int]:
    """Where windows begin along one axis: every `stride`, the last one so that it ends where the image does."""
    return [min(start, length - side) for start in range(0, length - side + stride, stride)]


def slide(
    predict: Predict, image: UInt8[Tensor, "3 H W"], windows: Windows, *, batch_size: int
) -> Float[Tensor, "l c H W"]:
    """The scores of every pixel: the mean over the windows that show it."""
    _, height, width = image.shape
    side = windows.side
    places = [(y, x) for y in starts(height, side, windows.stride) for x in starts(width, side, windows.stride)]
    total, shown = torch.zeros(()), image.new_zeros(height, width, dtype=torch.float32)
    for first in range(0, len(places), batch_size):
        chosen = places[first : first + batch_size]
        scores = predict(torch.stack([image[:, y : y + side, x : x + side] for y, x in chosen]))
        if not total.ndim:
            total = scores.new_zeros(*scores.shape[1:3], height, width)
        for (y, x), window in zip(chosen, scores, strict=True):
            total[:, :, y : y + side, x : x + side] += enlarged(window, (side, side))
            shown[y : y + side, x : x + side] += 1
    return total / shown


def enlarged(scores: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c H W"]:
    """Scores on another grid, bilinearly."""
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Inference:
    """How splits are scored; `heed` is called before every image, to stop when asked to."""

    windows: Windows
    batch_size: int  # windows at a time
    workers: int
    world: dist.World
    heed: Callable[[], None] = lambda: None

    def labels(self, predict: Predict, reader: Reader) -> Iterator[tuple[int, Tensor, UInt8[Tensor, "H W"]]]:
        """For every sample of this rank: where it is, the class of each pixel by each variant (l H W), its mask."""
        mine = np.arange(self.world.rank, len(reader), self.world.size)
        load = WholeImage(self.windows.short_side)
        loaded = batches(reader, mine, load, batch_size=1, workers=self.workers)
        for index, sample in zip(mine, loaded, strict=True):
            self.heed()
            image, mask = (sample[name][0].to(self.world.device) for name in ("image", "mask"))
            with torch.inference_mode():
                scores = slide(predict, image, self.windows, batch_size=self.batch_size)
                yield int(index), enlarged(scores, (mask.shape[0], mask.shape[1])).argmax(1), mask


def evaluate(predict: Predict, reader: Reader, how: Inference, *, num_classes: int) -> Integer[np.ndarray, "l n 3 c"]:
    """`segmentation_metrics.count` of every image under every variant; all ranks share the work and the result."""
    counts: Tensor | None = None
    for index, labels, mask in how.labels(predict, reader):
        if counts is None:
            counts = torch.zeros(len(labels), len(reader), 3, num_classes, dtype=torch.float64, device=mask.device)
        for variant, label in enumerate(labels):
            counts[variant, index] = segmentation_metrics.count(label, mask, num_classes=num_classes).double()
    assert counts is not None, "fewer images than processes"
    total = dist.mean(counts, how.world) * how.world.size  # of images that other ranks have seen: 0 here
    return total.round().long().cpu().numpy()


def trivial(train: Integer[np.ndarray, "n g"], val: Reader, *, seed: int) -> dict[str, dict[str, float]]:
    """What needs no look at the image, from the pixels of each class in the cells of train: its most frequent class
    everywhere, and the most frequent class of each place.
    """
    frequent = train.sum(0).argmax()
    places = np.where(train.any(1), train.argmax(1), frequent).astype(np.uint8).reshape(PLACES)
    counts: dict[str, list[Tensor]] = {"most_frequent": [], "position": []}
    for index in range(len(val)):
        mask = _mask(val, index)
        guesses = np.full_like(mask, frequent), crop_part_map(places, WHOLE, mask.shape)
        for line, guess in zip(counts, guesses, strict=True):
            found = segmentation_metrics.count(
                torch.from_numpy(guess), torch.from_numpy(mask), num_classes=train.shape[1]
            )
            counts[line].append(found)
    scored = {
        line: segmentation_metrics.scores(torch.stack(each).numpy(), val.mask_names, seed=seed)
        for line, each in counts.items()
    }
    return {line: {name: scores[name] for name in BESIDE} for line, scores in scored.items()}


def _mask(reader: Reader, index: int) -> UInt8[np.ndarray, "h w"]:
    mask = reader.mask(index)
    assert mask is not None, f"{reader.keys[index]} has no mask; select with masked_split"
    return mask
