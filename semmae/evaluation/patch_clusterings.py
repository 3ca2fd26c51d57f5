"""Two clusterings of tokens as the teacher returns them, one after the other: foreground, then parts."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional

from semmae.core.rng import fold
from semmae.parts.spherical_kmeans import MAX_PATCHES, TokenClusters, spherical_kmeans, subsample

ELBOW_PATCHES = 4_000  # patches of the first clustering of Amir et al., which is repeated for each number of clusters
ELBOW = 0.975  # Amir et al. add clusters as long as each one lowers the distortion below this share
MAX_CLUSTERS = 15  # of the first clustering of Amir et al.
MIN_VOTES = 0.75  # share of the images in which a foreground cluster has to attract attention (Amir et al.)


class ForegroundClusters(NamedTuple):
    """Two clusterings: the first one separates the foreground, the second one divides it (Amir et al., 2021).

    Attributes:
        first: Clusters of all patches.
        is_foreground: Whether each cluster of `first` is foreground.
        second: Clusters of the foreground's patches.
    """

    first: TokenClusters
    is_foreground: Tensor
    second: TokenClusters

    def assign(self, tokens: Float[Tensor, "b n d"]) -> Integer[Tensor, "b n"]:
        """Return 0 for background, and 1 plus the second cluster for foreground."""
        return torch.where(self.is_foreground[self.first.assign(tokens)], 1 + self.second.assign(tokens), 0)


def fit_foreground_clusters(
    tokens: Float[Tensor, "s n d"], attention: Float[Tensor, "s n"], num_labels: int, *, seed: int
) -> ForegroundClusters:
    """Cluster all patches, keep the clusters that attract the class token's attention, and cluster their patches.

    Source: Amir et al., "Deep ViT Features as Dense Visual Descriptors", 2021, section 4 (part co-segmentation). The
    paper's threshold of the attention belongs to one teacher; here a cluster attracts attention in an image if its
    patches have more than the mean attention of the image. If too few patches are found for the second clustering,
    clusters with fewer votes are added.

    Args:
        tokens: Keys or tokens of a sample of images.
        attention: The attention of the class token; sums to 1 per image.
        num_labels: Number of labels of the part maps, background included.
        seed: Seed of both clusterings.
    """
    mean = tokens.mean((0, 1))
    few = subsample(tokens.flatten(0, 1), ELBOW_PATCHES, seed=seed)
    first = TokenClusters(mean, _elbow_centroids(functional.normalize(few - mean, dim=-1), seed=seed))
    labels, num_parts = first.assign(tokens), max(num_labels - 1, 1)
    votes = attention_votes(labels, attention, len(first.centroids))
    is_foreground = votes >= MIN_VOTES
    for cluster in votes.argsort(descending=True):
        if is_foreground[labels].sum() >= num_parts:
            break
        is_foreground[cluster] = True
    seed = fold(seed, "foreground")
    found = subsample(tokens[is_foreground[labels]], MAX_PATCHES, seed=seed)
    second = spherical_kmeans(functional.normalize(found - mean, dim=-1), num_parts, seed=seed)
    return ForegroundClusters(first, is_foreground, TokenClusters(mean, second))


def attention_votes(
    labels: Integer[Tensor, "s n"], attention: Float[Tensor, "s n"], num_clusters: int
) -> Float[Tensor, " k"]:
    """Return, for each cluster, the share of images in which it has more than the mean attention per patch.

    Only images that show the cluster count. A cluster that no image shows has 0.
    """
    is_label = functional.one_hot(labels, num_clusters).to(attention.dtype)  # (s, n, k)
    count = is_label.sum(1)
    mean_attention = torch.einsum("sn,snk->sk", attention, is_label) / count.clamp(min=1)
    is_salient = mean_attention > attention.mean(1, keepdim=True)
    return (is_salient & (count > 0)).sum(0) / (count > 0).sum(0).clamp(min=1)


def _elbow_centroids(unit: Float[Tensor, "s d"], *, seed: int) -> Float[Tensor, "k d"]:
    """Add clusters until one more lowers the mean distance to the nearest centroid by less than `ELBOW` demands."""
    centroids = spherical_kmeans(unit, 1, seed=seed)
    distortion = 1 - (unit @ centroids.T).amax(1).mean()
    for num_clusters in range(2, min(MAX_CLUSTERS, len(unit)) + 1):
        more = spherical_kmeans(unit, num_clusters, seed=seed)
        lower = 1 - (unit @ more.T).amax(1).mean()
        if lower > ELBOW * distortion:
            break
        centroids, distortion = more, lower
    return centroids
