"""Separate the foreground of images from their background, without labels.

Photographers place their subject near the center of an image, and the background reaches the border. This is the
boundary prior of saliency detection (Wei et al., "Geodesic Saliency Using Background Priors", ECCV 2012). The paper
applies the prior to regions of one image. `ClusterForeground` applies it to clusters of patch tokens of many images:
the score of a cluster is the mean center prior of its patches.

The score of a patch is the mean over several clusterings, because one clustering is too coarse to follow an outline.
The scores then diffuse among similar patches of the same image. The alternatives are compared in
docs/results/part_learning.md.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional

from semmae.core.rng import fold

CENTER_SIGMA = 0.5  # standard deviation of the center prior, where half a side of the image is 1
SIGMOID_SCALE = 0.5  # scale of the sigmoid over scores, in standard deviations of `content_score`
OBJECT_ANGLE = 0.9  # radians per standard deviation of positions, for `object_code`; top and bottom get different codes
AFFINITY_TEMPERATURE = 0.1  # of the softmax over cosines between patches
RESTART_PROBABILITY = 0.1  # weight of the initial score in each diffusion step
IMAGES_PER_CLUSTERING = 400  # maximum; each clustering draws its own images
CHUNK_SIZE = 64  # images processed at a time
MIN_SCORE_STD = 1e-4  # a smaller standard deviation of the content score is rounding noise


class ClusterForeground(nn.Module):
    """Estimate the foreground share of each patch from its token.

    The methods take two versions of the same patch tokens. `raw_tokens` are the output of the teacher. `tokens` are
    prepared by `PositionKeys.prepare_tokens` and scaled to unit length.

    Args:
        config: The fields of `ClusterForegroundConfig` in `semmae.training.parts_loop`.
        grid: Rows and columns of patches.
        embed_dim: Size of a token.
    """

    centroids: Tensor
    cluster_scores: Tensor
    center_map: Tensor
    threshold: Tensor
    score_std: Tensor

    def __init__(self, config: dict[str, Any], *, grid: tuple[int, int], embed_dim: int) -> None:
        super().__init__()
        self.center_prior_weight: float = config["center_prior"]
        self.diffusion_steps: int = config["diffusion_steps"]
        self.threshold_classes: int = config["threshold_classes"]
        clusterings, clusters = config["clusterings"], config["clusters"]
        self.register_buffer("centroids", torch.zeros(clusterings, clusters, embed_dim))
        self.register_buffer("cluster_scores", torch.ones(clusterings, clusters))
        self.register_buffer("center_map", gaussian_center_map(grid))
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("score_std", torch.ones(()))

    def fit(self, tokens: Float[Tensor, "s n d"], raw_tokens: Float[Tensor, "s n d"], *, seed: int) -> None:
        """Fit the clusterings, the cluster scores and the threshold to the tokens of a sample of images.

        Raises:
            ValueError: There are fewer patches than clusters, or all clusters have nearly the same score.
        """
        self._fit_centroids(tokens, seed=seed)
        clusters = torch.cat([self.nearest_clusters(chunk) for chunk in tokens.split(CHUNK_SIZE)])
        self._fit_cluster_scores(clusters)
        self.score_std.copy_(self.content_score(clusters).std())
        if self.score_std < MIN_SCORE_STD:
            raise ValueError(
                "no foreground found: every cluster of patches is spread evenly over the images; expected images with "
                "an object near the center. Set parts.learned.foreground to null, so that every patch belongs to a part"
            )
        chunks = zip(tokens.split(CHUNK_SIZE), raw_tokens.split(CHUNK_SIZE), strict=True)
        scores = torch.cat([self.foreground_score(*chunk) for chunk in chunks])
        self.threshold.fill_(highest_threshold(scores, self.threshold_classes))

    def _fit_centroids(self, tokens: Float[Tensor, "s n d"], *, seed: int) -> None:
        from sklearn.cluster import MiniBatchKMeans  # a slow import

        num_patches, num_clusters = min(len(tokens), IMAGES_PER_CLUSTERING) * tokens.shape[1], self.centroids.shape[1]
        if num_patches < num_clusters:
            raise ValueError(
                f"parts.learned.foreground.clusters is {num_clusters}, but {len(tokens)} images have {num_patches} "
                "patches; lower it, or raise parts.num_images"
            )
        for i, centroids in enumerate(self.centroids):
            own_seed = fold(seed, i) % 2**32
            images = np.random.default_rng(own_seed).permutation(len(tokens))[:IMAGES_PER_CLUSTERING]
            kmeans = MiniBatchKMeans(num_clusters, n_init=1, batch_size=4096, max_iter=20, random_state=own_seed)
            centers = kmeans.fit(tokens[images].flatten(0, 1).numpy()).cluster_centers_
            centroids.copy_(functional.normalize(torch.from_numpy(centers.astype(np.float32)), dim=-1))

    def _fit_cluster_scores(self, clusters: Integer[Tensor, "s n r"]) -> None:
        """Set the score of each cluster to the mean center prior of its patches, and of empty clusters to 1."""
        for indices, scores in zip(clusters.unbind(-1), self.cluster_scores, strict=True):
            count = indices.flatten().bincount(minlength=len(scores))
            total = torch.zeros_like(scores).index_add_(0, indices.flatten(), self.center_map.repeat(len(clusters)))
            scores.copy_(torch.where(count > 0, total / count.clamp(min=1), 1.0))

    def nearest_clusters(self, tokens: Float[Tensor, "b n d"]) -> Integer[Tensor, "b n r"]:
        """Return the index of each patch's nearest cluster in each of the `r` clusterings."""
        return torch.einsum("bnd,rkd->bnrk", tokens, self.centroids).argmax(-1)

    def content_score(self, clusters: Integer[Tensor, "b n r"]) -> Float[Tensor, "b n"]:
        """Return the mean score of each patch's clusters. A cluster that is spread evenly over images has score 1."""
        return self.cluster_scores[torch.arange(len(self.cluster_scores), device=clusters.device), clusters].mean(-1)

    def foreground_score(
        self, tokens: Float[Tensor, "b n d"], raw_tokens: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b n"]:
        """Return the content score plus the weighted center prior of the position, diffused within each image."""
        position_scale = self.center_prior_weight * self.score_std / self.center_map.std()
        position_score = position_scale * (self.center_map - 1)
        score = self.content_score(self.nearest_clusters(tokens)) + position_score
        return diffuse(score, patch_affinity(raw_tokens), steps=self.diffusion_steps)

    def forward(self, tokens: Float[Tensor, "b n d"], raw_tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        """Return the foreground share of each patch, in [0, 1]; 0.5 at the threshold.

        The threshold of an image is the mean of two thresholds: the one of the dataset, and the Otsu threshold of the
        image. The second one adapts to objects that stand out less than others.
        """
        score = self.foreground_score(tokens, raw_tokens)
        threshold = (self.threshold + otsu_threshold(score)) / 2
        return torch.sigmoid((score - threshold[:, None]) / (SIGMOID_SCALE * self.score_std))


def highest_threshold(scores: Float[Tensor, "s n"], num_classes: int) -> float:
    """Return the threshold between the two highest of `num_classes` classes of scores.

    k-means in one dimension minimizes the variance within classes. This is the multi-threshold criterion of Otsu, "A
    Threshold Selection Method from Gray-Level Histograms", 1979, section III.
    """
    from sklearn.cluster import KMeans  # a slow import

    means = KMeans(num_classes, n_init=4, random_state=0).fit(scores.reshape(-1, 1).numpy()).cluster_centers_
    return float(np.sort(means.ravel())[-2:].mean())


def otsu_threshold(scores: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """Split the scores of each image into two classes with minimal variance within the classes (Otsu, 1979).

    Returns:
        The midpoint between the means of both classes, for each image.
    """
    ranked = scores.sort(1).values
    below = torch.arange(1, scores.shape[1], device=scores.device)
    sums, above = ranked.cumsum(1), scores.shape[1] - below
    low, high = sums[:, :-1] / below, (sums[:, -1:] - sums[:, :-1]) / above
    best = (below * above * (high - low).square()).argmax(1, keepdim=True)
    return ((low + high) / 2).gather(1, best)[:, 0]


def otsu_separation(scores: Float[Tensor, "s n"]) -> float:
    """Return the share of the variance of scores that lies between the two classes of `otsu_threshold`."""
    flat = scores.flatten()
    above = flat > otsu_threshold(flat[None])
    weight = above.float().mean()
    if not 0 < weight < 1:
        return 0.0
    gap = flat[above].mean() - flat[~above].mean()
    return float(weight * (1 - weight) * gap.square() / flat.var(correction=0))


def patch_affinity(raw_tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n n"]:
    """Compute the similarity of all pairs of patches of an image: a softmax over cosines. Each row sums to 1.

    The function subtracts the mean token of the image, so that the cosines reflect differences of color and texture.
    """
    unit = functional.normalize(raw_tokens - raw_tokens.mean(1, keepdim=True), dim=-1)
    return ((unit @ unit.transpose(1, 2)).float() / AFFINITY_TEMPERATURE).softmax(-1)


def diffuse(score: Float[Tensor, "b n"], affinity: Float[Tensor, "b n n"], *, steps: int) -> Float[Tensor, "b n"]:
    """Diffuse scores among the patches of an image: `steps` steps of a random walk with restart.

    Source: Zhou et al., "Learning with Local and Global Consistency", NeurIPS 2003.
    """
    diffused = score
    with torch.autocast(score.device.type, enabled=False):  # rounding errors would add up over the steps
        for _ in range(steps):
            diffused = (1 - RESTART_PROBABILITY) * (affinity @ diffused[:, :, None])[:, :, 0]
            diffused = diffused + RESTART_PROBABILITY * score
    return diffused


def patch_positions(grid: tuple[int, int], *, device: torch.device | str = "cpu") -> Float[Tensor, "n 2"]:
    """Return row and column of each patch's center; the edges of the image are at -1 and 1."""
    rows, columns = ((torch.arange(side, device=device) + 0.5) / side * 2 - 1 for side in grid)
    return torch.cartesian_prod(rows, columns)


def gaussian_center_map(grid: tuple[int, int]) -> Float[Tensor, " n"]:
    """Return a Gaussian around the center of the image, scaled to mean 1."""
    weights = torch.exp(-patch_positions(grid).square().sum(1) / (2 * CENTER_SIGMA**2))
    return weights / weights.mean()


def object_code(foreground: Float[Tensor, "b n"], grid: tuple[int, int]) -> Float[Tensor, "b n 4"]:
    """Encode where on its object each patch lies.

    Positions are relative to the mean and the standard deviation of the foreground's positions. Left and right have
    the same code, because objects face either way. In an image without foreground, all patches count as foreground.

    Args:
        foreground: The foreground share of each patch; patches above 0.5 belong to the object.
        grid: Rows and columns of patches.

    Returns:
        Unit vectors: sine and cosine of the height, sine and cosine of the horizontal distance from the center.
    """
    positions = patch_positions(grid, device=foreground.device)
    weights = (2 * foreground - 1).clamp(min=0) + 1e-9
    weights = (weights / weights.sum(1, keepdim=True))[:, :, None]
    center = (weights * positions).sum(1, keepdim=True)
    extent = (weights * (positions - center).square()).sum(1, keepdim=True).sqrt()
    min_extent = 2 * (1 - positions[-1])  # one patch
    height, distance = (OBJECT_ANGLE * (positions - center) / extent.maximum(min_extent)).unbind(-1)
    distance = distance.abs()
    return torch.stack([height.sin(), height.cos(), distance.sin(), distance.cos()], dim=-1) / 2**0.5
