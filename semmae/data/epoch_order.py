"""The order in which an epoch sees the samples: a pure function of (seed, epoch), so a resumed run goes on exactly.

`epoch_order`: a permutation of all samples, or with weights some more often than others; `epoch_size`: how many.
"""

import numpy as np
from jaxtyping import Float64, Int64, Integer

from semmae.core import rng


def epoch_order(
    num_samples: int, *, seed: int, epoch: int, weights: Float64[np.ndarray, " n"] | None = None,
    shards: Integer[np.ndarray, " n"] | None = None, window: int | None = None,
) -> Int64[np.ndarray, " k"]:  # fmt: skip
    """The samples of one epoch in their order: a permutation of all, or of what `weights` ask for.

    With a `window` the shards (by a number for each sample) are dealt at random into windows of so many,
    and samples are permuted in each window alone: a disk that is cold or far away reads few shards at a time.

    A sample of weight w is there floor(w) times; what is missing to round(w * n), n being the number of samples of
    that weight, is a seeded choice among them that moves on from epoch to epoch, so that all get their turn.
    """
    found = rng.numpy_generator(seed, "epoch_order", epoch).permutation(_seen(num_samples, seed, epoch, weights))
    if window is None or shards is None:
        return found
    present, shard = np.unique(shards, return_inverse=True)
    turn = rng.numpy_generator(seed, "shard_order", epoch).permutation(len(present))
    return found[np.argsort(turn[shard[found]] // window, kind="stable")]


def _seen(
    num_samples: int, seed: int, epoch: int, weights: Float64[np.ndarray, " n"] | None
) -> Int64[np.ndarray, " k"]:
    """What an epoch sees, in no random order."""
    if weights is None:
        return np.arange(num_samples)
    seen = []
    for weight in np.unique(weights):
        ids = np.flatnonzero(weights == weight)
        more = _times(len(ids), weight) - int(weight) * len(ids)
        turn = rng.numpy_generator(seed, "weight", repr(float(weight))).permutation(ids)
        seen += [np.repeat(ids, int(weight)), turn[(epoch * more + np.arange(more)) % len(ids)]]
    return np.concatenate(seen)


def epoch_size(num_samples: int, weights: Float64[np.ndarray, " n"] | None) -> int:
    """How many samples an epoch sees: always as many."""
    if weights is None:
        return num_samples
    return sum(
        _times(int(count), weight) for weight, count in zip(*np.unique(weights, return_counts=True), strict=True)
    )


def _times(num_samples: int, weight: float) -> int:
    return round(float(weight) * num_samples)
