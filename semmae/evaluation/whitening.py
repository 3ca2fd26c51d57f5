"""Features whose every direction counts alike: PCA whitening, fitted on train.

A few directions (brightness, color) carry nearly all the variance of a masked autoencoder's features, and so nearly
all of a cosine between them. Whitened, a nearest neighbor no longer depends on how the features are scaled, turned or
sheared (Jegou and Chum 2012, section 3).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from semmae.evaluation.classification_metrics import CHUNK
from semmae.evaluation.mapped_rows import Rows

NEGLIGIBLE = 1e-6  # of the largest variance: a direction with less holds rounding, not data


def fit(train: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d r"]]:
    """The mean of train and the matrix V / sqrt(variances), V its principal directions but those in which it does not
    vary. Two passes over train, chunk by chunk.
    """
    mean = sum((part.double().sum(0) for part in train.split(CHUNK)), torch.zeros(1)) / len(train)
    centered = (part.double() - mean for part in train.split(CHUNK))
    covariance = sum((part.T @ part for part in centered), torch.zeros(1)) / len(train)
    variances, directions = torch.linalg.eigh(covariance)
    kept = variances > NEGLIGIBLE * variances[-1]
    return mean.float(), (directions[:, kept] / variances[kept].sqrt()).float()


def whiten(
    features: Float[Tensor, "m d"], mean: Float[Tensor, " d"], matrix: Float[Tensor, "d r"]
) -> Float[Tensor, "m r"]:
    """The features of any split, whitened; they lie in a file, as those of `features.extract` do."""
    rows = Rows(matrix.shape[1])
    for part in features.split(CHUNK):
        rows.append((part - mean) @ matrix)
    return rows.tensor()
