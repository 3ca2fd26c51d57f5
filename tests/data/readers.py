"""Readers of images that are in memory, for tests."""

import numpy as np

from semmae.data.sample_table import SampleTable


def sample_table(keys: list[str]) -> SampleTable:
    """Samples without labels, masks and weights, in one shard."""
    n = len(keys)
    return SampleTable(
        keys=keys,
        shard=np.zeros(n, np.int32),
        row=np.arange(n),
        image_range=np.zeros((n, 2), np.int64),
        mask_range=np.full((n, 2), -1),
        size=np.zeros((n, 2), np.int32),
        label=np.full(n, -1),
        weight=None,
    )
