"""Baselines of part scores: simple part maps, for comparison with those of the part learner."""

from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from semmae.core.rng import fold
from semmae.data.patch_masks import majority_labels
from semmae.evaluation.part_evaluation import PartBatch, PatchLabeler
from semmae.models.teacher import Tokens
from semmae.parts.attention_parts import head_labels
from semmae.parts.grid_parts import grid_labels
from semmae.parts.kmeans_parts import KMeansParts


def fit_baselines(
    sample: list[PartBatch],
    train_counts: Integer[np.ndarray, "n g"],
    *,
    num_labels: int,
    grid: tuple[int, int],
    untrained: Callable[[UInt8[Tensor, "b 3 H W"]], Tokens],
    seed: int,
) -> dict[str, PatchLabeler]:
    """Fit the baselines of part scores.

    Args:
        sample: Batches of train.
        train_counts: The sum of `cell_counts` over all of train.
        num_labels: Number of clusters, and maximum number of rectangles.
        grid: Rows and columns of patches.
        untrained: A function that encodes images with an untrained teacher.
        seed: Seed of the clusterings.

    Returns:
        - `color_kmeans`: k-means of the mean and standard deviation of each patch's colors.
        - `teacher_kmeans`: k-means of the patch tokens of the teacher.
        - `untrained_kmeans`: k-means of the patch tokens of an untrained teacher.
        - `attention_heads`: the heads of the teacher's class token as parts ("raw attention" in SemMAE, table 4).
        - `grid`: equal rectangles, the same in each image.
        - `position`: the most frequent true label of each position, the same in each image.
    """
    position = np.where(train_counts.any(1), majority_labels(train_counts), 0)
    rectangles = grid_labels(grid, num_labels)

    def untrained_tokens(batch: PartBatch) -> Float[Tensor, "b n d"]:
        return untrained(batch.images).patch

    def teacher_tokens(batch: PartBatch) -> Float[Tensor, "b n d"]:
        return batch.tokens.patch

    return {
        "color_kmeans": _fit_color_kmeans(sample, grid, num_labels, fold(seed, "colour")),
        "untrained_kmeans": _fit_token_kmeans(sample, untrained_tokens, grid, num_labels, fold(seed, "untrained")),
        "teacher_kmeans": _fit_token_kmeans(sample, teacher_tokens, grid, num_labels, fold(seed, "teacher")),
        "attention_heads": PatchLabeler(
            sample[0].tokens.heads.shape[1] + 1, lambda batch: head_labels(batch.tokens.heads).cpu().numpy()
        ),
        "grid": PatchLabeler(int(rectangles.max()) + 1, lambda batch: np.tile(rectangles, (len(batch.images), 1))),
        "position": PatchLabeler(train_counts.shape[1], lambda batch: np.tile(position, (len(batch.images), 1))),
    }


def patch_colors(images: UInt8[Tensor, "b 3 H W"], grid: tuple[int, int]) -> Float[Tensor, "b n 6"]:
    """Compute the mean and the standard deviation of R, G and B (in [0, 1]) in each patch."""
    pixels = rearrange(images.float() / 255, "b c (h p) (w q) -> b (h w) (p q) c", h=grid[0], w=grid[1])
    return torch.cat([pixels.mean(2), pixels.std(2, correction=0)], dim=2)


def _fit_color_kmeans(sample: list[PartBatch], grid: tuple[int, int], num_labels: int, seed: int) -> PatchLabeler:
    def colors(batch: PartBatch) -> np.ndarray:
        return patch_colors(batch.images, grid).cpu().numpy().reshape(-1, 6)

    from sklearn.cluster import KMeans  # a slow import

    points = np.concatenate([colors(batch) for batch in sample])
    clusters = KMeans(num_labels, n_init=4, random_state=seed % 2**32).fit(points)
    return PatchLabeler(num_labels, lambda batch: clusters.predict(colors(batch)).reshape(len(batch.images), -1))


def _fit_token_kmeans(
    sample: list[PartBatch],
    patch_tokens: Callable[[PartBatch], Float[Tensor, "b n d"]],
    grid: tuple[int, int],
    num_labels: int,
    seed: int,
) -> PatchLabeler:
    """Fit the part method `kmeans`."""
    patches = torch.cat([patch_tokens(batch).cpu() for batch in sample])
    clusters = KMeansParts(
        {"num_parts": num_labels, "background": False, "grid": grid, "embed_dim": patches.shape[2], "temperature": 1.0}
    )
    clusters.fit(patches, seed=seed)

    def label(batch: PartBatch) -> np.ndarray:
        tokens = batch.tokens._replace(patch=patch_tokens(batch).cpu())
        return clusters.assign(tokens).argmax(1).numpy()

    return PatchLabeler(num_labels, label)
