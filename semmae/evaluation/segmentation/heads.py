"""Code shared by the segmentation heads on frozen patch tokens: token maps, and a hold-out to choose settings."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from semmae.core.rng import numpy_generator
from semmae.data.dataset import Reader
from semmae.evaluation.features import TokenEncoder
from semmae.evaluation.segmentation import metrics
from semmae.evaluation.segmentation.sliding_window import Predictor, SlidingWindowOptions, evaluate

TokenMapEncoder = Callable[[UInt8[Tensor, "b 3 s s"]], Float[Tensor, "b d h w"]]


class TrainSplit(NamedTuple):
    """The masked samples of train, and the positions of the samples that are held out to choose settings."""

    reader: Reader
    held_out: Integer[np.ndarray, " h"]

    @property
    def kept(self) -> Integer[np.ndarray, " k"]:
        """The positions of the samples that are not held out."""
        return np.setdiff1d(np.arange(len(self.reader)), self.held_out)

    @property
    def num_classes(self) -> int:
        return len(self.reader.mask_names)

    def best_variant(self, predict: Predictor, options: SlidingWindowOptions) -> int:
        """Return the first of the variants with the highest mIoU on the held-out samples."""
        counts = evaluate(predict, self.reader.select(self.held_out), options, num_classes=self.num_classes)
        return int(np.argmax(np.nan_to_num(np.nanmean(metrics.iou(counts.sum(1)), axis=1))))


class TrainedHead(NamedTuple):
    """A predictor with a single variant, its chosen setting, and the learning curve of its training."""

    predict: Predictor
    setting: dict[str, float]
    history: list[dict[str, float]]


def hold_out(reader: Reader, *, share: float, seed: int) -> TrainSplit:
    """Hold out `share` of the samples: at least one sample, but not all samples.

    Raises:
        ValueError: There is a single sample.
    """
    if len(reader) < 2:
        raise ValueError(
            "train has a single image with a mask; expected at least two, because one is held out to choose settings"
        )
    count = min(len(reader) - 1, max(1, round(share * len(reader))))
    return TrainSplit(reader, np.sort(numpy_generator(seed, "holdout").permutation(len(reader))[:count]))


def build_token_map_encoder(encode_tokens: TokenEncoder) -> TokenMapEncoder:
    """Return a function from square images to the patch tokens of a frozen network on their grid, in float32."""

    def encode(images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b d h w"]:
        _, tokens = encode_tokens(images)
        b, n, d = tokens.shape
        side = round(n**0.5)
        return tokens.float().transpose(1, 2).reshape(b, d, side, side)

    return encode
