"""The interface of part methods, and k-means as the baseline without training.

A part method assigns each patch a share of every part label, from the tokens of a frozen teacher. All methods first
prepare the tokens in the same way, because the raw tokens of a small teacher mostly encode position and brightness.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semmae.models.teacher import Tokens

WHITENING_SHRINKAGE = 0.01  # this share of the mean variance is added to each variance, to limit the gain of noise


class PartMethod(nn.Module):
    """Base class of part methods.

    Args:
        config: `grid` (rows and columns of patches), `embed_dim` (size of a token), `num_parts`, `background` (whether
            the background has its own label), and the keys of the subclass.

    Attributes:
        background: The label of the background, `num_parts`; None without a background.
        num_labels: Number of labels, background included.
        digest: Digest of the saved method; empty before `load_parts`.
    """

    position_mean: Tensor
    whiten: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config, self.digest = config, ""
        self.grid: tuple[int, int] = tuple(config["grid"])
        self.num_parts: int = config["num_parts"]
        self.background: int | None = config["num_parts"] if config["background"] else None
        self.num_labels = self.num_parts + (self.background is not None)
        self.register_buffer("position_mean", torch.zeros(self.grid[0] * self.grid[1], config["embed_dim"]))
        self.register_buffer("whiten", torch.eye(config["embed_dim"]))

    def prepare_tokens(self, patch: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Prepare the patch tokens of the teacher.

        Subtract the mean token of each position, whiten, and add the mean of the 3 x 3 patches around each patch.
        """
        x = ((patch - self.position_mean) @ self.whiten).float()
        padded = F.pad(x.transpose(1, 2).unflatten(2, self.grid), [1] * 4, mode="replicate")
        return x + F.avg_pool2d(padded, 3, stride=1).flatten(2).transpose(1, 2)

    def fit_whitening(self, patch: Float[Tensor, "s n d"]) -> None:
        """Fit the mean token of each position and the whitening matrix to a sample of training images."""
        self.position_mean.copy_(patch.mean(0))
        x = (patch - self.position_mean).flatten(0, 1).double()
        variance, axes = torch.linalg.eigh(x.T @ x / len(x))
        self.whiten.copy_(axes / (variance + WHITENING_SHRINKAGE * variance.mean()).sqrt())

    def assign(self, tokens: Tokens) -> Float[Tensor, "b p n"]:
        """Return the share of every label in each patch (sums to 1). The argmax is the part map."""
        raise TypeError(f"{type(self).__name__} does not assign parts")


class KMeansParts(PartMethod):
    """Spherical k-means of the prepared tokens. Each cluster is a part; there is no background label.

    Args:
        config: The keys of `PartMethod`, and `temperature`, the temperature of the softmax over cosines.
    """

    centroids: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.register_buffer("centroids", torch.zeros(self.num_labels, config["embed_dim"]))

    def fit(self, patch: Float[Tensor, "s n d"], *, seed: int) -> float:
        """Fit the whitening and the centroids to the tokens of a sample of images.

        Returns:
            The mean cosine between a token and its nearest centroid.

        Raises:
            ValueError: There are fewer patches than parts.
        """
        self.fit_whitening(patch)
        unit = F.normalize(self.prepare_tokens(patch), dim=-1).flatten(0, 1)
        self.centroids.copy_(spherical_kmeans(unit, self.num_labels, seed=seed))
        return float((unit @ self.centroids.T).amax(1).mean())

    def assign(self, tokens: Tokens) -> Float[Tensor, "b p n"]:
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
