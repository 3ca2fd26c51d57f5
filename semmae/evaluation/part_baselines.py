"""Baselines of part scores: simple part maps, for comparison with those of the part learner.

Each baseline gets its inputs as its authors use them, and as many labels as the parts have, if it has a choice.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from semmae.core.rng import fold
from semmae.data.patch_masks import majority_labels
from semmae.evaluation.foreground_baselines import TOKEN_SOURCES, fit_foreground_baselines, mean_iou, true_labels
from semmae.evaluation.part_evaluation import PartBatch, PatchLabeler
from semmae.evaluation.patch_clusterings import fit_foreground_clusters
from semmae.parts.attention_parts import head_labels
from semmae.parts.grid_parts import grid_labels
from semmae.parts.spherical_kmeans import MAX_PATCHES, fit_token_clusters, subsample

Fit = Callable[[int], PatchLabeler]  # fits a clustering with a seed


def fit_baselines(
    sample: list[PartBatch],
    train_counts: Integer[np.ndarray, "n g"],
    *,
    num_labels: int,
    grid: tuple[int, int],
    seed: int,
    seeds: int,
) -> dict[str, list[PatchLabeler]]:
    """Fit the baselines of part scores.

    Args:
        sample: Batches of train, with the tokens of an untrained teacher.
        train_counts: The sum of `cell_counts` over all of train.
        num_labels: Number of clusters, and maximum number of rectangles.
        grid: Rows and columns of patches.
        seed: Seed of the clusterings.
        seeds: Number of clusterings of each baseline that clusters. The other baselines have one labeler.

    Returns:
        - `color_kmeans`: k-means of the mean and standard deviation of each patch's colors.
        - `untrained_kmeans`: spherical k-means of the patch tokens of an untrained teacher.
        - `teacher_kmeans`: spherical k-means of the teacher's patch tokens as they are.
        - `centered_kmeans`: the same after the mean token of the sample is subtracted.
        - `foreground_kmeans`: k-means within the foreground that attention finds (`fit_foreground_clusters`), of the
          teacher's keys or tokens; the choice that has the higher mean IoU with the true foreground of the sample.
        - `attention_heads`: the heads of the teacher's class token as parts ("raw attention" in SemMAE, table 4).
        - `grid`: equal rectangles, the same in each image.
        - `position`: the most frequent true label of each position, the same in each image.
        - The baselines of the foreground alone, see `fit_foreground_baselines`.

    Raises:
        ValueError: The sample has fewer patches than there are labels.
    """
    if (num_patches := sum(len(batch.images) for batch in sample) * grid[0] * grid[1]) < num_labels:
        raise ValueError(
            f"too few patches for the clusterings of part_scores: {num_patches}; expected at least the number of "
            f"labels, {num_labels}. Raise part_scores.protocol.num_images"
        )
    fits = {"color_kmeans": ("colour", _color_fit(sample, grid, num_labels)), **_token_fits(sample, num_labels)}
    fits["foreground_kmeans"] = ("foreground", _foreground_fit(sample, num_labels, fold(seed, "foreground", 0)))
    fitted = {name: [fit(fold(seed, stream, i)) for i in range(seeds)] for name, (stream, fit) in fits.items()}
    position = np.where(train_counts.any(1), majority_labels(train_counts), 0)
    rectangles = grid_labels(grid, num_labels)
    single = {
        "attention_heads": PatchLabeler(
            sample[0].tokens.heads.shape[1] + 1, lambda batch: head_labels(batch.tokens.heads).cpu().numpy()
        ),
        "grid": PatchLabeler(int(rectangles.max()) + 1, lambda batch: np.tile(rectangles, (len(batch.images), 1))),
        "position": PatchLabeler(train_counts.shape[1], lambda batch: np.tile(position, (len(batch.images), 1))),
        **fit_foreground_baselines(sample, grid),
    }
    return fitted | {name: [labeler] for name, labeler in single.items()}


def patch_colors(images: UInt8[Tensor, "b 3 H W"], grid: tuple[int, int]) -> Float[Tensor, "b n 6"]:
    """Compute the mean and the standard deviation of R, G and B (in [0, 1]) in each patch."""
    pixels = rearrange(images.float() / 255, "b c (h p) (w q) -> b (h w) (p q) c", h=grid[0], w=grid[1])
    return torch.cat([pixels.mean(2), pixels.std(2, correction=0)], dim=2)


def _color_fit(sample: list[PartBatch], grid: tuple[int, int], num_labels: int) -> Fit:
    """Return the fit of `color_kmeans`."""
    colors = torch.cat([patch_colors(batch.images, grid).cpu() for batch in sample]).flatten(0, 1)

    def fit(seed: int) -> PatchLabeler:
        from sklearn.cluster import KMeans  # a slow import

        points = subsample(colors, MAX_PATCHES, seed=seed).numpy()
        clusters = KMeans(num_labels, n_init=4, random_state=seed % 2**32).fit(points)

        def label(batch: PartBatch) -> np.ndarray:
            points = patch_colors(batch.images, grid).cpu().flatten(0, 1).numpy()
            return clusters.predict(points).reshape(len(batch.images), -1)

        return PatchLabeler(num_labels, label)

    return fit


def _token_fits(sample: list[PartBatch], num_labels: int) -> dict[str, tuple[str, Fit]]:
    """Return the random stream and the fit of each baseline that clusters tokens."""
    tokens = torch.cat([batch.tokens.patch.cpu() for batch in sample])
    untrained = torch.cat([_untrained(batch) for batch in sample])

    def fit_untrained(seed: int) -> PatchLabeler:
        clusters = fit_token_clusters(untrained, num_labels, centered=False, seed=seed)
        return PatchLabeler(num_labels, lambda batch: clusters.assign(_untrained(batch)).numpy())

    def fit_teacher(seed: int, *, centered: bool = False) -> PatchLabeler:
        clusters = fit_token_clusters(tokens, num_labels, centered=centered, seed=seed)
        return PatchLabeler(num_labels, lambda batch: clusters.assign(batch.tokens.patch.cpu()).numpy())

    return {
        "untrained_kmeans": ("untrained", fit_untrained),
        "teacher_kmeans": ("teacher", fit_teacher),
        "centered_kmeans": ("centered", partial(fit_teacher, centered=True)),
    }


def _foreground_fit(sample: list[PartBatch], num_labels: int, seed: int) -> Fit:
    """Return the fit of `foreground_kmeans`, after the choice between keys and tokens with `seed`."""
    attention, true = torch.cat([batch.tokens.attention.cpu() for batch in sample]), true_labels(sample).cpu()
    tokens = {source: torch.cat([getattr(batch.tokens, source).cpu() for batch in sample]) for source in TOKEN_SOURCES}
    ious = {}
    for source in TOKEN_SOURCES:
        clusters = fit_foreground_clusters(tokens[source], attention, num_labels, seed=seed)
        ious[source] = mean_iou(clusters.assign(tokens[source]) > 0, true)
    best = max(TOKEN_SOURCES, key=lambda source: ious[source])

    def fit(seed: int) -> PatchLabeler:
        clusters = fit_foreground_clusters(tokens[best], attention, num_labels, seed=seed)
        count = 1 + len(clusters.second.centroids)
        return PatchLabeler(
            count, lambda batch: clusters.assign(getattr(batch.tokens, best).cpu()).numpy(), background=0
        )

    return fit


def _untrained(batch: PartBatch) -> Float[Tensor, "b n d"]:
    assert batch.untrained is not None, "load batches with the tokens of an untrained teacher"
    return batch.untrained.cpu()
