"""Keypoint protocols of part discovery, as functions of part maps and keypoints.

Coordinates are x (to the right) and y (down), as fractions of the width and height of the image or of a box.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Integer
from torch import Tensor


class KeypointRows(NamedTuple):
    """The part centers and keypoints of a set of images, in the coordinates of the regression.

    Attributes:
        centers: Center of each part; not finite for a part that is not in the image.
        points: Position of each keypoint.
        visible: Whether each keypoint is visible.
        scale: The length to which errors are relative, per image.
    """

    centers: Float64[np.ndarray, "n k 2"]
    points: Float64[np.ndarray, "n l 2"]
    visible: Bool[np.ndarray, "n l"]
    scale: Float64[np.ndarray, " n"]


def labels_at(maps: Float[Tensor, "p h w"], points: Float64[np.ndarray, "l 2"]) -> Integer[np.ndarray, " l"]:
    """Return the label at each point: the argmax of the bilinear interpolation of the shares of all labels.

    Args:
        maps: The share of every label in each patch.
        points: Positions, as fractions of the image.
    """
    positions = torch.as_tensor(2 * points - 1, dtype=maps.dtype, device=maps.device)[None, None]
    shares = F.grid_sample(maps[None], positions, mode="bilinear", padding_mode="border", align_corners=False)
    return shares[0, :, 0].argmax(0).cpu().numpy()


def part_centers(labels: Integer[np.ndarray, "h w"], num_parts: int) -> Float64[np.ndarray, "k 2"]:
    """Return the center of the patches of each part, as fractions of the image; NaN for a part without a patch."""
    height, width = labels.shape
    is_part = labels == np.arange(num_parts)[:, None, None]
    area = is_part.sum((1, 2)).astype(np.float64)
    area[area == 0] = np.nan
    x = is_part.sum(1) @ ((np.arange(width) + 0.5) / width) / area
    y = is_part.sum(2) @ ((np.arange(height) + 0.5) / height) / area
    return np.stack([x, y], axis=1)


def in_boxes(points: Float64[np.ndarray, "n l 2"], boxes: Float64[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n l 2"]:
    """Convert points to fractions of boxes (x, y, width, height in the units of the points)."""
    return (points - boxes[:, None, :2]) / boxes[:, None, 2:]


def keypoint_error(fit: KeypointRows, test: KeypointRows) -> float:
    """Regress keypoints from part centers and compute the mean distance to the true keypoints of `test`.

    Each keypoint has its own linear regression on `fit` (Huang and Li 2020). A part that is not in the image counts as
    if it were at its mean position. PDiscoNet takes a part as present if its map exceeds 0.5 somewhere; here it is
    present if it is the label of a patch, which does not depend on the temperature of the maps.

    Returns:
        The mean over all visible keypoints of all images of `test`, relative to `test.scale`.

    Raises:
        ValueError: A keypoint of `test` is never visible in `fit`.
    """
    from sklearn.linear_model import LinearRegression  # a slow import

    errors = []
    for index in range(fit.points.shape[1]):
        used, scored = fit.visible[:, index], test.visible[:, index]
        if not scored.any():
            continue
        if not used.any():
            raise ValueError(
                f"keypoint {index + 1} is not visible in any image that the regression is fitted on; expected at least "
                "one. Check the annotations of the training images"
            )
        is_present = np.isfinite(fit.centers[used])
        mean = np.where(is_present, fit.centers[used], 0).sum(0) / np.maximum(is_present.sum(0), 1)
        regression = LinearRegression().fit(_inputs(fit.centers[used], mean), fit.points[used, index])
        predicted = regression.predict(_inputs(test.centers[scored], mean))
        errors.append(np.linalg.norm(predicted - test.points[scored, index], axis=1) / test.scale[scored])
    return float(np.concatenate(errors).mean())


def _inputs(centers: Float64[np.ndarray, "n k 2"], mean: Float64[np.ndarray, "k 2"]) -> Float64[np.ndarray, "n m"]:
    return np.where(np.isfinite(centers), centers, mean).reshape(len(centers), -1)
