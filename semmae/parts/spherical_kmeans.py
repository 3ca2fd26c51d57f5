"""Spherical k-means: clusters of unit vectors (Dhillon & Modha, "Concept Decompositions", 2001)."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MAX_PATCHES = 20_000  # patches that a clustering is fitted to, drawn from the sample


def spherical_kmeans(unit: Float[Tensor, "s d"], count: int, *, seed: int) -> Float[Tensor, "p d"]:
    """Cluster unit vectors into `count` clusters.

    Returns:
        The cluster means, scaled to unit length.

    Raises:
        ValueError: There are fewer vectors than clusters.
    """
    if len(unit) < count:
        raise ValueError(
            f"parts.num_parts is {count}, but there are {len(unit)} patches; lower it, or raise parts.num_images"
        )
    from sklearn.cluster import KMeans  # a slow import

    centers = KMeans(count, n_init=4, random_state=seed % 2**32).fit(unit.numpy()).cluster_centers_
    return F.normalize(torch.from_numpy(np.asarray(centers, dtype=np.float32)), dim=-1)


def subsample(rows: Float[Tensor, "s d"], count: int, *, seed: int) -> Float[Tensor, "r d"]:
    """Draw at most `count` rows at random."""
    if len(rows) <= count:
        return rows
    return rows[torch.from_numpy(np.random.default_rng(seed).permutation(len(rows))[:count])]
