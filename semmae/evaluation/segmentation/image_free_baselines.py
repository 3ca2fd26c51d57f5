"""Baselines of a segmentation that do not look at the image: the most frequent class, overall and by position."""

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

from semmae.data.crops import FULL_IMAGE, crop_part_map
from semmae.data.dataset import Reader
from semmae.evaluation.scores import Metrics
from semmae.evaluation.segmentation import metrics
from semmae.evaluation.segmentation.splits import POSITION_GRID, read_mask


def score_image_free_baselines(train: Integer[np.ndarray, "n g"], val: Reader, *, seed: int) -> dict[str, Metrics]:
    """Score two predictions that are the same for every image.

    Args:
        train: Pixels of each class in each cell of train, as `open_masked_split` returns them.
        seed: Seed of the bootstrap.

    Returns:
        Metrics of `most_frequent` (the most frequent class of train) and `position` (the most frequent class of each
        cell).
    """
    most_frequent = train.sum(0).argmax()
    by_position = np.where(train.any(1), train.argmax(1), most_frequent).astype(np.uint8).reshape(POSITION_GRID)
    counts: dict[str, list[Tensor]] = {"most_frequent": [], "position": []}
    for index in range(len(val)):
        mask = read_mask(val, index)
        predictions = np.full_like(mask, most_frequent), crop_part_map(by_position, FULL_IMAGE, mask.shape)
        for baseline, prediction in zip(counts, predictions, strict=True):
            image_counts = metrics.count(
                torch.from_numpy(prediction), torch.from_numpy(mask), num_classes=train.shape[1]
            )
            counts[baseline].append(image_counts)
    return {
        baseline: metrics.baseline_metrics(metrics.scores(torch.stack(x).numpy(), val.mask_names, seed=seed))
        for baseline, x in counts.items()
    }
