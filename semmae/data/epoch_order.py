"""The order in which an epoch visits the samples: a pure function of seed and epoch, so a resumed run repeats it."""

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
    """Compute the sample indices of one epoch in their order.

    A sample of weight w appears floor(w) times. The n samples of this weight fill up to round(w * n) indices with a
    seeded choice among them. The choice rotates from epoch to epoch, so all samples get their turn.

    Args:
        weights: How often an epoch repeats each sample; None visits each sample once.
        shards: Number of the shard of each sample.
        shuffle_shards: Visit so many random shards at a time and permute only their samples, so that a slow disk
            reads few shards at once. None permutes all samples together.
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
        _count(int(count), weight) for weight, count in zip(*np.unique(weights, return_counts=True), strict=True)
    )


def _epoch_samples(
    num_samples: int, seed: int, epoch: int, weights: Float64[np.ndarray, " n"] | None
) -> Int64[np.ndarray, " k"]:
    """Collect the samples of an epoch, before they are permuted."""
    if weights is None:
        return np.arange(num_samples)
    parts = []
    for weight in np.unique(weights):
        indices = np.flatnonzero(weights == weight)
        remainder = _count(len(indices), weight) - int(weight) * len(indices)
        rotation = rng.numpy_generator(seed, "weight", repr(float(weight))).permutation(indices)
        chosen = rotation[(epoch * remainder + np.arange(remainder)) % len(indices)]
        parts += [np.repeat(indices, int(weight)), chosen]
    return np.concatenate(parts)


def _count(num_samples: int, weight: float) -> int:
    return round(float(weight) * num_samples)
