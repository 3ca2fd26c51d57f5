"""The part method `kmeans`: spherical k-means of patch tokens, without training."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from semmae.models.teacher import Tokens
from semmae.parts.token_part_method import TokenPartMethod


class KMeansParts(TokenPartMethod):
    """Spherical k-means of the prepared tokens. Each cluster is a part; there is no background label.

    Args:
        config: The keys of `TokenPartMethod`, and `temperature`, the temperature of the softmax over cosines.
    """

    centroids: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.register_buffer("centroids", torch.zeros(self.num_labels, config["embed_dim"]))

    def fit(self, patch: Float[Tensor, "s n d"], *, seed: int) -> dict[str, float]:
        """Fit the whitening and the centroids to the tokens of a sample of images.

        Returns:
            `cosine`, the mean cosine between a token and its nearest centroid.

        Raises:
            ValueError: There are fewer patches than parts.
        """
        self.fit_whitening(patch)
        unit = F.normalize(self.prepare_tokens(patch), dim=-1).flatten(0, 1)
        self.centroids.copy_(spherical_kmeans(unit, self.num_labels, seed=seed))
        return {"cosine": float((unit @ self.centroids.T).amax(1).mean())}

    def assign(self, tokens: Tokens, counts: Integer[Tensor, "b n g"] | None = None) -> Float[Tensor, "b p n"]:
        """Return a softmax over the cosines to the centroids."""
        cosine = F.normalize(self.prepare_tokens(tokens.patch), dim=-1) @ self.centroids.T
        return (cosine / self.config["temperature"]).softmax(-1).transpose(1, 2)


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
