"""Segmentation by the vote of the nearest frozen patches of train.

- `PatchBank`: labeled patches of train, at most so many, so memory does not grow with the data.
- `knn`: the number of neighbors is chosen on held-out images, whose patches do not vote while it is.
"""

from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from pydantic import Field, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as params
from torch import Tensor

from semmae.core.config import STRICT
from semmae.core.rng import numpy_generator
from semmae.data.crops import FULL_IMAGE, crop_part_map
from semmae.data.dataset import Reader
from semmae.data.decoding import IGNORE
from semmae.data.loader import batches
from semmae.evaluation import classification_metrics
from semmae.evaluation.part_metrics import cell_counts
from semmae.evaluation.segmentation.heads import Encode, Train, TrainedHead
from semmae.evaluation.segmentation.sliding_window import Predict, SlidingWindowOptions, starts
from semmae.evaluation.segmentation.transforms import WholeImage


@params(frozen=True, config=STRICT)
class KnnSegmentationConfig:
    """The vote of neighbors."""

    k: Annotated[list[PositiveInt], Field(min_length=1)]
    temperature: PositiveFloat
    patches: PositiveInt  # of train that may vote


class PatchBank(NamedTuple):
    """Labeled patches of train, and the sample that each comes from."""

    tokens: Float[Tensor, "m d"]
    labels: Integer[Tensor, " m"]
    samples: Integer[Tensor, " m"]

    def predict(self, encode: Encode, *, num_classes: int, ks: list[int], temperature: float) -> Predict:
        """Windows -> the share of the vote that each class has among the k nearest patches, a variant per k."""

        def votes(images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b l c h w"]:
            found = encode(images)
            b, d, h, w = found.shape
            queries = found.permute(0, 2, 3, 1).reshape(-1, d)
            each = [
                classification_metrics.vote(
                    self.tokens, self.labels, queries, num_classes=num_classes, k=k, temperature=temperature
                )
                for k in ks
            ]
            return torch.stack(each).view(len(ks), b, h, w, num_classes).permute(1, 0, 4, 2, 3)

        return votes

    def without(self, samples: Integer[np.ndarray, " h"]) -> "PatchBank":
        """The patches of other samples."""
        kept = ~torch.isin(self.samples, torch.from_numpy(samples).to(self.samples.device))
        return PatchBank(*(column[kept] for column in self))


def bank(encode: Encode, reader: Reader, how: SlidingWindowOptions, *, patches: int, seed: int) -> PatchBank:
    """At most so many patches, as many of each image (or one of each of so many images), seen as inference sees them.

    A patch has the label of most of its pixels; one without a labeled pixel is not drawn.
    """
    device, windows = how.world.device, how.windows
    samples = np.sort(numpy_generator(seed, "bank").permutation(len(reader))[:patches])
    each = patches // len(samples)
    rows: list[tuple[Tensor, ...]] = []
    loaded = batches(reader, samples, WholeImage(windows.short_side), batch_size=1, workers=how.workers)
    for index, sample in zip(samples.tolist(), loaded, strict=True):
        how.exit_if_stopped()
        image, mask = sample["image"][0], sample["mask"][0].numpy()
        mask = crop_part_map(mask, FULL_IMAGE, (image.shape[1], image.shape[2]))
        corners = [
            np.s_[y : y + windows.side, x : x + windows.side]
            for y in starts(image.shape[1], windows.side, windows.stride)
            for x in starts(image.shape[2], windows.side, windows.stride)
        ]
        shown = torch.stack([image[:, *here] for here in corners])
        tokens = torch.cat([encode(part.to(device)) for part in shown.split(how.batch_size)])
        grid = (tokens.shape[2], tokens.shape[3])
        counts = [cell_counts(mask[here], grid=grid, num_classes=len(reader.mask_names)) for here in corners]
        labels = [np.where(count.any(1), count.argmax(1), IGNORE) for count in counts]
        label = np.concatenate(labels)
        known = np.flatnonzero(label != IGNORE)
        chosen = numpy_generator(seed, "patches", reader.keys[index]).permutation(known)[:each]
        rows.append(
            (
                tokens.permute(0, 2, 3, 1).flatten(0, 2)[chosen],
                torch.from_numpy(label[chosen]),
                torch.full((len(chosen),), index),
            )
        )
    return PatchBank(*(torch.cat(column).to(device) for column in zip(*rows, strict=True)))


@torch.inference_mode()
def knn(
    recipe: KnnSegmentationConfig, encode: Encode, train: Train, *, how: SlidingWindowOptions, seed: int
) -> TrainedHead:
    """The vote of the number of neighbors that does best on the held-out samples while they do not vote."""
    voters = bank(encode, train.reader, how, patches=recipe.patches, seed=seed)
    ask: dict[str, Any] = {"num_classes": train.num_classes, "temperature": recipe.temperature}
    best = 0
    if len(recipe.k) > 1:
        best = train.best(voters.without(train.held_out).predict(encode, ks=recipe.k, **ask), how)
    return TrainedHead(voters.predict(encode, ks=[recipe.k[best]], **ask), {"k": recipe.k[best]}, [])
