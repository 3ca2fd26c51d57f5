"""Segmentation by the vote of the nearest patches of train, compared by their frozen tokens.

A bank keeps a bounded number of labeled patches, so memory does not grow with the dataset.
"""

from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from pydantic import Field, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as pydantic_dataclass
from torch import Tensor

from semmae.core.config import STRICT
from semmae.core.rng import numpy_generator
from semmae.data.crops import FULL_IMAGE, crop_part_map
from semmae.data.dataset import Reader
from semmae.data.decoding import IGNORE
from semmae.data.loader import batches
from semmae.data.patch_masks import cell_counts
from semmae.evaluation import classification_metrics
from semmae.evaluation.segmentation.heads import TokenMapEncoder, TrainedHead, TrainSplit
from semmae.evaluation.segmentation.sliding_window import Predictor, SlidingWindowOptions
from semmae.evaluation.segmentation.transforms import WholeImage


@pydantic_dataclass(frozen=True, config=STRICT)
class KnnSegmentationConfig:
    """Settings of the vote of the nearest patches. The number of neighbors is chosen among `k`."""

    k: Annotated[list[PositiveInt], Field(min_length=1)]
    temperature: PositiveFloat
    patches: PositiveInt  # size of the bank


class PatchBank(NamedTuple):
    """Labeled patches of train, and the sample that each patch is from."""

    tokens: Float[Tensor, "m d"]
    labels: Integer[Tensor, " m"]
    samples: Integer[Tensor, " m"]

    def build_predictor(
        self, encode: TokenMapEncoder, *, num_classes: int, ks: list[int], temperature: float
    ) -> Predictor:
        """Return a function from windows to the votes of the k nearest patches, with a variant per k."""

        def predict(images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b l c h w"]:
            tokens = encode(images)
            b, d, h, w = tokens.shape
            queries = tokens.permute(0, 2, 3, 1).reshape(-1, d)
            votes = [
                classification_metrics.knn_votes_of_chunk(
                    self.tokens, self.labels, queries, num_classes=num_classes, k=k, temperature=temperature
                )
                for k in ks
            ]
            return torch.stack(votes).view(len(ks), b, h, w, num_classes).permute(1, 0, 4, 2, 3)

        return predict

    def without_samples(self, samples: Integer[np.ndarray, " h"]) -> "PatchBank":
        """Return a bank without the patches of these samples."""
        kept = ~torch.isin(self.samples, torch.from_numpy(samples).to(self.samples.device))
        return PatchBank(*(column[kept] for column in self))


def build_patch_bank(
    encode: TokenMapEncoder, reader: Reader, options: SlidingWindowOptions, *, max_patches: int, seed: int
) -> PatchBank:
    """Draw at most `max_patches` labeled patches, equally many from each image.

    If there are more images than patches, one patch is drawn from each of `max_patches` images. Images are encoded in
    the same windows as at inference. The label of a patch is the most frequent label of its pixels. Patches without a
    labeled pixel are not drawn.
    """
    device = options.world.device
    indices = np.sort(numpy_generator(seed, "bank").permutation(len(reader))[:max_patches])
    per_image = max_patches // len(indices)
    rows: list[tuple[Tensor, ...]] = []
    load = WholeImage(options.grid.short_side)
    loaded = batches(reader, indices, load, batch_size=1, workers=options.workers)
    for index, sample in zip(indices.tolist(), loaded, strict=True):
        options.exit_if_stopped()
        tokens, labels = _encode_patches(encode, sample, options, num_classes=len(reader.mask_names))
        labeled = np.flatnonzero(labels != IGNORE)
        drawn = numpy_generator(seed, "patches", reader.keys[index]).permutation(labeled)[:per_image]
        rows.append((tokens[drawn], torch.from_numpy(labels[drawn]), torch.full((len(drawn),), index)))
    return PatchBank(*(torch.cat(column).to(device) for column in zip(*rows, strict=True)))


def fit_knn(
    config: KnnSegmentationConfig,
    encode: TokenMapEncoder,
    train: TrainSplit,
    *,
    options: SlidingWindowOptions,
    seed: int,
) -> TrainedHead:
    """Build a bank of patches, and choose the number of neighbors on the held-out samples.

    Patches of held-out samples do not vote in this choice. The returned predictor uses the patches of all samples.
    """
    with torch.inference_mode():
        bank = build_patch_bank(encode, train.reader, options, max_patches=config.patches, seed=seed)
        vote_options: dict[str, Any] = {"num_classes": train.num_classes, "temperature": config.temperature}
        best = 0
        if len(config.k) > 1:
            kept_bank = bank.without_samples(train.held_out)
            best = train.best_variant(kept_bank.build_predictor(encode, ks=config.k, **vote_options), options)
        k = config.k[best]
        return TrainedHead(bank.build_predictor(encode, ks=[k], **vote_options), {"k": k}, [])


def _encode_patches(
    encode: TokenMapEncoder, sample: dict[str, Any], options: SlidingWindowOptions, *, num_classes: int
) -> tuple[Float[Tensor, "p d"], Integer[np.ndarray, " p"]]:
    """Return the tokens and the labels of all patches of all windows of an image."""
    grid, image = options.grid, sample["image"][0]
    mask = crop_part_map(sample["mask"][0].numpy(), FULL_IMAGE, (image.shape[1], image.shape[2]))
    windows = [np.s_[y : y + grid.side, x : x + grid.side] for y, x in grid.corners(image.shape[1], image.shape[2])]
    pixels = torch.stack([image[:, *window] for window in windows])
    tokens = torch.cat([encode(chunk.to(options.world.device)) for chunk in pixels.split(options.batch_size)])
    cells = (tokens.shape[2], tokens.shape[3])
    counts = [cell_counts(mask[window], grid=cells, num_classes=num_classes) for window in windows]
    labels = [np.where(count.any(1), count.argmax(1), IGNORE) for count in counts]
    return tokens.permute(0, 2, 3, 1).flatten(0, 2), np.concatenate(labels)
