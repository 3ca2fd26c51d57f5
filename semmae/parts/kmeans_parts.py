"""The part method `kmeans`: spherical k-means of the teacher's patch tokens, without training."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from semmae.models.teacher import Tokens
from semmae.parts.part_method import PartMethod
from semmae.parts.spherical_kmeans import fit_token_clusters


class KMeansParts(PartMethod):
    """Spherical k-means of tokens minus their mean. Each cluster is a part; there is no background label.

    Args:
        config: The keys of `PartMethod`, `embed_dim` (size of a token), and `temperature`, the temperature of the
            softmax over cosines.
    """

    mean: Tensor
    centroids: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.register_buffer("mean", torch.zeros(config["embed_dim"]))
        self.register_buffer("centroids", torch.zeros(self.num_labels, config["embed_dim"]))

    def fit(self, patch: Float[Tensor, "s n d"], *, seed: int) -> dict[str, float]:
        """Fit the mean token and the centroids to the tokens of a sample of images.

        Returns:
            `cosine`, the mean cosine between a token and its nearest centroid.

        Raises:
            ValueError: There are fewer patches than parts.
        """
        clusters = fit_token_clusters(patch, self.num_labels, centered=True, seed=seed)
        self.mean.copy_(clusters.mean)
        self.centroids.copy_(clusters.centroids)
        return {"cosine": float(self._cosine(patch).amax(-1).mean())}

    def _cosine(self, patch: Float[Tensor, "b n d"]) -> Float[Tensor, "b n p"]:
        """Return the cosine between each token and each centroid."""
        return F.normalize(patch - self.mean, dim=-1) @ self.centroids.T

    def assign(self, tokens: Tokens, counts: Integer[Tensor, "b n g"] | None = None) -> Float[Tensor, "b p n"]:
        """Return a softmax over the cosines to the centroids."""
        return (self._cosine(tokens.patch) / self.config["temperature"]).softmax(-1).transpose(1, 2)
