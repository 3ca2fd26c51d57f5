"""What the probes of frozen patch tokens share: the tokens on their grid, and the images to choose settings on."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semmae.core import distributed
from semmae.core.rng import numpy_generator
from semmae.data.dataset import Reader
from semmae.evaluation.segmentation import metrics
from semmae.evaluation.segmentation.sliding_window import Predict, SlidingWindowOptions, evaluate
from semmae.models import vit
from semmae.models.teacher import Teacher

Encode = Callable[[UInt8[Tensor, "b 3 s s"]], Float[Tensor, "b d h w"]]


class Train(NamedTuple):
    """The masked samples of train, and those of them on which settings are chosen."""

    reader: Reader
    held_out: Integer[np.ndarray, " h"]

    @property
    def kept(self) -> Integer[np.ndarray, " k"]:
        """The samples to learn from while settings are chosen."""
        return np.setdiff1d(np.arange(len(self.reader)), self.held_out)

    @property
    def num_classes(self) -> int:
        return len(self.reader.mask_names)

    def best(self, predict: Predict, how: SlidingWindowOptions) -> int:
        """The variant of `predict` with the highest mIoU on the held-out samples; of equals the first."""
        counts = evaluate(predict, self.reader.select(self.held_out), how, num_classes=self.num_classes)
        return int(np.argmax(np.nan_to_num(np.nanmean(metrics.iou(counts.sum(1)), axis=1))))


class TrainedHead(NamedTuple):
    """A predictor of one variant, the setting that was chosen for it, and the curve of its training."""

    predict: Predict
    chosen: dict[str, float]
    history: list[dict[str, float]]


def hold_out(reader: Reader, *, share: float, seed: int) -> Train:
    """Set aside `share` of the samples, at least one, and leave at least one."""
    if len(reader) < 2:
        raise ValueError("train has a single image with a mask; a probe needs two to choose its settings")
    count = min(len(reader) - 1, max(1, round(share * len(reader))))
    return Train(reader, np.sort(numpy_generator(seed, "holdout").permutation(len(reader))[:count]))


def token_maps(
    network: VisionTransformer | Teacher, *, device: torch.device, precision: distributed.Precision
) -> Encode:
    """Images -> the normalized patch tokens of a frozen network, in float32, on their grid; the images are square."""
    network = network.to(device).eval()
    vit.use_fastest_attention(network, device)

    @torch.no_grad()
    def encode(images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b d h w"]:
        with distributed.autocast(device, precision):
            if isinstance(network, Teacher):
                found = network.encode(images).patch
            else:
                found = vit.encode_tokens(network, vit.normalize(images))[:, network.num_prefix_tokens :]
        b, n, d = found.shape
        side = round(n**0.5)
        return found.float().transpose(1, 2).reshape(b, d, side, side)

    return encode
