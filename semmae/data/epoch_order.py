"""The order in which an epoch visits the samples.

The order depends only on the seed and the epoch, so a resumed run repeats it.
"""

import numpy as np
from jaxtyping import Float64, Int64, Integer

from semmae.core import rng


def epoch_order(
    num_samples: int,
    *,
    seed: int,
    epoch: int,
    weights: Float64[np.ndarray, " n"] | None = None,
    shards: Integer[np.ndarray, " n"] | None = None,
    shuffle_shards: int | None = None,
) -> Int64[np.ndarray, " k"]:
    """Compute the order of the sample indices in one epoch.

    Each sample of weight w appears floor(w) times. Some of the n samples of this weight appear once more, so that
    together they appear round(w * n) times. These come from a fixed random permutation: each epoch takes the next ones,
    and continues at the beginning after the last one.

    Args:
        weights: Average number of times that an epoch visits each sample; None visits each sample once.
        shards: Index of the shard of each sample.
        shuffle_shards: Number of random shards to visit at a time. The samples are shuffled only within these shards,
            so that a slow disk reads few shards at once. None shuffles all samples together.
    """
    indices = _epoch_samples(num_samples, seed, epoch, weights)
    order = rng.numpy_generator(seed, "epoch_order", epoch).permutation(indices)
    if shuffle_shards is None or shards is None:
        return order
    present, shard = np.unique(shards, return_inverse=True)
    shard_rank = rng.numpy_generator(seed, "shard_order", epoch).permutation(len(present))
    return order[np.argsort(shard_rank[shard[order]] // shuffle_shards, kind="stable")]


def epoch_size(num_samples: int, weights: Float64[np.ndarray, " n"] | None) -> int:
    """Count the samples of an epoch; the count is the same in every epoch."""
    if weights is None:
        return num_samples
    return sum(
        _visits(int(count), weight) for weight, count in zip(*np.unique(weights, return_counts=True), strict=True)
    )


def _epoch_samples(
    num_samples: int, seed: int, epoch: int, weights: Float64[np.ndarray, " n"] | None
) -> Int64[np.ndarray, " k"]:
    """Collect the sample indices of an epoch, with repetitions, before the shuffle."""
    if weights is None:
        return np.arange(num_samples)
    parts = []
    for weight in np.unique(weights):
        indices = np.flatnonzero(weights == weight)
        remainder = _visits(len(indices), weight) - int(weight) * len(indices)
        permuted = rng.numpy_generator(seed, "weight", repr(float(weight))).permutation(indices)
        extra = permuted[(epoch * remainder + np.arange(remainder)) % len(indices)]
        parts += [np.repeat(indices, int(weight)), extra]
    return np.concatenate(parts)


def _visits(num_samples: int, weight: float) -> int:
    """Count the visits to all samples of one weight in an epoch."""
    return round(float(weight) * num_samples)
