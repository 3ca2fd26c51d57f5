"""Metrics of a segmentation, from three counts per image and class: correct, predicted and true pixels.

The counts are the diagonal and the margins of the confusion matrix. IoU and accuracy follow from them. They need 3 c
numbers per image of any size. Pixels whose mask is 255 (ignore) are not counted.
"""

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from semmae.core.rng import numpy_generator
from semmae.data.decoding import IGNORE
from semmae.evaluation.scores import Metrics, Scores

BOOTSTRAP_SAMPLES = 200  # the standard error then has a relative error of 5 %


def count(
    prediction: Integer[Tensor, "H W"], mask: UInt8[Tensor, "H W"], *, num_classes: int
) -> Integer[Tensor, "3 c"]:
    """Count the correct, predicted and true pixels of each class among the labeled pixels of an image."""
    labeled = mask != IGNORE
    predicted, true = prediction[labeled].long(), mask[labeled].long()
    return torch.stack([x.bincount(minlength=num_classes) for x in (true[predicted == true], predicted, true)])


def iou(counts: Integer[np.ndarray, "*n 3 c"]) -> Float[np.ndarray, "*n c"]:
    """Compute the intersection over union of each class; nan for a class that the masks lack."""
    correct, predicted, true = (counts[..., i, :].astype(np.float64) for i in range(3))
    return np.where(true > 0, correct / np.maximum(predicted + true - correct, 1), np.nan)


def scores(counts: Integer[np.ndarray, "n 3 c"], names: list[str], *, seed: int) -> Scores:
    """Compute the scores of a predictor from its counts on n images.

    A class that the masks lack has no IoU. Pixels that are predicted as such a class lower the IoU of their true class.

    Args:
        names: Names of the classes.
        seed: Seed of the bootstrap.

    Returns:
        `miou` (mean over the classes in the masks), `pixel_accuracy`, `miou_se` and `class_iou`. `miou_se` is the
        standard error by a bootstrap over images, because pixels of one image are not independent.

    Raises:
        ValueError: No pixel is labeled.
    """
    total = counts.sum(0)
    if not total[2].any():
        raise ValueError("every pixel of val's masks is 255 (ignore); expected labeled pixels. Check the masks of val")
    rng = numpy_generator(seed, "bootstrap")
    weights = rng.multinomial(len(counts), [1 / len(counts)] * len(counts), size=BOOTSTRAP_SAMPLES)
    resampled = (weights @ counts.reshape(len(counts), -1)).reshape(BOOTSTRAP_SAMPLES, *total.shape)
    resampled = resampled[resampled[:, 2].any(1)]  # drop samples without a labeled pixel
    class_iou = iou(total)
    return Scores(
        {
            "miou": float(np.nanmean(class_iou)),
            "pixel_accuracy": float(total[0].sum() / total[2].sum()),
            "miou_se": float(np.nanmean(iou(resampled), axis=1).std()),
        },
        class_iou={name: None if np.isnan(x) else float(x) for name, x in zip(names, class_iou, strict=True)},
    )


def baseline_metrics(scores: Scores) -> Metrics:
    """Return the metrics that are reported for a baseline: `miou` and `pixel_accuracy`."""
    return {name: scores.encoder[name] for name in ("miou", "pixel_accuracy")}
