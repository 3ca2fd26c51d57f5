"""Scores of a segmentation, from three counts per image and class: right pixels, predicted pixels, true pixels.

These are the diagonal and the margins of the confusion matrix, all that IoU and accuracy need of it: images stream by,
and what is kept of one is 3 c numbers, whatever its size. Pixels of 255 count nowhere.

- `count`: of one image. `scores`: miou, pixel_accuracy, IoU by class, and how sure the mIoU is.
"""

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from semmae.core.rng import numpy_generator
from semmae.data.decoding import IGNORE
from semmae.evaluation.scores import Scores

DRAWS = 200  # bootstrap samples of images behind a standard error: its own error is 5 %


def count(
    prediction: Integer[Tensor, "H W"], mask: UInt8[Tensor, "H W"], *, num_classes: int
) -> Integer[Tensor, "3 c"]:
    """Right, predicted and true pixels of each class in an image, among those whose mask says anything."""
    known = mask != IGNORE
    predicted, true = prediction[known].long(), mask[known].long()
    return torch.stack([x.bincount(minlength=num_classes) for x in (true[predicted == true], predicted, true)])


def iou(counts: Integer[np.ndarray, "*n 3 c"]) -> Float[np.ndarray, "*n c"]:
    """Intersection over union of each class, nan where the class does not occur in the masks."""
    right, predicted, true = (counts[..., i, :].astype(np.float64) for i in range(3))
    return np.where(true > 0, right / np.maximum(predicted + true - right, 1), np.nan)


def scores(counts: Integer[np.ndarray, "n 3 c"], names: list[str], *, seed: int) -> Scores:
    """miou (mean over the classes in the masks), its standard error miou_se, pixel_accuracy; each class's IoU.

    A class that the masks do not show has no IoU (None); predicting it costs the class that is there. The standard
    error is that of images drawn anew with replacement (bootstrap), which pixels of one image do not make smaller.
    """
    total = counts.sum(0)
    if not total[2].any():
        raise ValueError("every pixel of val's masks is 255 (ignore); segment needs masks that say something")
    weights = numpy_generator(seed, "bootstrap").multinomial(len(counts), [1 / len(counts)] * len(counts), size=DRAWS)
    drawn = (weights @ counts.reshape(len(counts), -1)).reshape(DRAWS, *total.shape)
    drawn = drawn[drawn[:, 2].any(1)]  # not the draws of nothing but images that are wholly 255
    each = iou(total)
    metrics = {
        "miou": float(np.nanmean(each)),
        "pixel_accuracy": float(total[0].sum() / total[2].sum()),
        "miou_se": float(np.nanmean(iou(drawn), axis=1).std()),
    }
    return Scores(
        metrics, class_iou={name: None if np.isnan(x) else float(x) for name, x in zip(names, each, strict=True)}
    )
