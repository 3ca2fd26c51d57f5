"""Spherical k-means: clusters of unit vectors (Dhillon & Modha, "Concept Decompositions", 2001)."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

MAX_PATCHES = 20_000  # patches that a clustering is fitted to, drawn from the sample


class TokenClusters(NamedTuple):
    """Spherical k-means of tokens.

    Attributes:
        mean: This vector is subtracted from tokens.
        centroids: The centroids of the clusters, of unit length.
    """

    mean: Float[Tensor, " d"]
    centroids: Float[Tensor, "k d"]

    def assign(self, tokens: Float[Tensor, "b n d"]) -> Integer[Tensor, "b n"]:
        """Return the cluster with the highest cosine; scaling the tokens to unit length would not change it."""
        return ((tokens - self.mean) @ self.centroids.T).argmax(-1)


def fit_token_clusters(
    tokens: Float[Tensor, "s n d"], num_clusters: int, *, centered: bool, seed: int
) -> TokenClusters:
    """Cluster the tokens of a sample of images as the teacher returns them, scaled to unit length.

    Args:
        tokens: Tokens of the patches.
        num_clusters: Number of clusters.
        centered: Whether the mean token is subtracted first.
        seed: Seed of the choice of patches and of k-means.
    """
    mean = tokens.mean((0, 1)) if centered else torch.zeros(tokens.shape[2])
    unit = F.normalize(subsample(tokens.flatten(0, 1), MAX_PATCHES, seed=seed) - mean, dim=-1)
    return TokenClusters(mean, spherical_kmeans(unit, num_clusters, seed=seed))


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
