"""The order in which an epoch sees the samples: a pure function of (seed, epoch), so a resumed run goes on exactly.

`epoch_order`: a permutation of all samples, or with weights some more often than others; `epoch_size`: how many.
"""

import numpy as np
from jaxtyping import Float64, Int64

from semmae import rng


def epoch_order(
    num_samples: int, *, seed: int, epoch: int, weights: Float64[np.ndarray, " n"] | None = None
) -> Int64[np.ndarray, " k"]:
    """The samples of one epoch in their order: a permutation of all, or of what `weights` ask for.

    A sample of weight w is there floor(w) times; what is missing to round(w * n), n being the number of samples of
    that weight, is a seeded choice among them that moves on from epoch to epoch, so that all get their turn.
    """
    order = rng.numpy_generator(seed, "epoch_order", epoch)
    if weights is None:
        return order.permutation(num_samples)
    seen = []
    for weight in np.unique(weights):
        ids = np.flatnonzero(weights == weight)
        more = _times(len(ids), weight) - int(weight) * len(ids)
        turn = rng.numpy_generator(seed, "weight", repr(float(weight))).permutation(ids)
        seen += [np.repeat(ids, int(weight)), turn[(epoch * more + np.arange(more)) % len(ids)]]
    return order.permutation(np.concatenate(seen))


def epoch_size(num_samples: int, weights: Float64[np.ndarray, " n"] | None) -> int:
    """How many samples an epoch sees: always as many."""
    if weights is None:
        return num_samples
    return sum(
        _times(int(count), weight) for weight, count in zip(*np.unique(weights, return_counts=True), strict=True)
    )


def _times(num_samples: int, weight: float) -> int:
    return round(float(weight) * num_samples)
