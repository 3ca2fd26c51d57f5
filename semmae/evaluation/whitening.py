"""PCA whitening of features, fitted on train (Jegou and Chum 2012, section 3).

In the features of a masked autoencoder, a few directions such as brightness and color have nearly all of the variance.
They dominate the cosine. After whitening, nearest neighbors do not change under invertible linear maps of the features.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from semmae.evaluation.classification_metrics import CHUNK
from semmae.evaluation.mapped_rows import MappedRows

MIN_VARIANCE = 1e-6  # relative to the largest variance; a direction with less holds only rounding errors


def fit(train: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d r"]]:
    """Compute the mean and the whitening matrix in two passes over the chunks of train.

    Returns:
        The mean, and V / sqrt(variances), where V are the principal directions with a variance above MIN_VARIANCE.
    """
    mean = sum((chunk.double().sum(0) for chunk in train.split(CHUNK)), torch.zeros(1)) / len(train)
    centered = (chunk.double() - mean for chunk in train.split(CHUNK))
    covariance = sum((chunk.T @ chunk for chunk in centered), torch.zeros(1)) / len(train)
    variances, directions = torch.linalg.eigh(covariance)
    kept = variances > MIN_VARIANCE * variances[-1]
    return mean.float(), (directions[:, kept] / variances[kept].sqrt()).float()


def whiten(
    features: Float[Tensor, "m d"], mean: Float[Tensor, " d"], matrix: Float[Tensor, "d r"]
) -> Float[Tensor, "m r"]:
    """Whiten the features of any split; the result is memory-mapped."""
    rows = MappedRows(matrix.shape[1])
    for chunk in features.split(CHUNK):
        rows.append((chunk - mean) @ matrix)
    return rows.as_tensor()
