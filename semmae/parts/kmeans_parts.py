"""The part method `kmeans`: spherical k-means of the teacher's patch tokens, without training."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from semmae.models.teacher import Tokens
from semmae.parts.part_method import PartMethod
from semmae.parts.spherical_kmeans import MAX_PATCHES, spherical_kmeans, subsample


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
        self.mean.copy_(patch.mean((0, 1)))
        unit = F.normalize(subsample(patch.flatten(0, 1), MAX_PATCHES, seed=seed) - self.mean, dim=-1)
        self.centroids.copy_(spherical_kmeans(unit, self.num_labels, seed=seed))
        return {"cosine": float((unit @ self.centroids.T).amax(1).mean())}

    def assign(self, tokens: Tokens, counts: Integer[Tensor, "b n g"] | None = None) -> Float[Tensor, "b p n"]:
        """Return a softmax over the cosines to the centroids."""
        cosine = F.normalize(tokens.patch - self.mean, dim=-1) @ self.centroids.T
        return (cosine / self.config["temperature"]).softmax(-1).transpose(1, 2)
