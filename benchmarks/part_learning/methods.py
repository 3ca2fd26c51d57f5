"""The methods that label patches: the part learner, its ablations, baselines, and a supervised reference.

Each ablation changes one thing of the learner in the section parts of params.yaml.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from semmae.core.rng import fold, numpy_generator
from semmae.data.patch_masks import majority_labels
from semmae.evaluation import patch_probe
from semmae.evaluation.patch_clusterings import fit_foreground_clusters
from semmae.models.teacher import Teacher, Tokens
from semmae.parts.foreground import CHUNK_SIZE
from semmae.parts.grid_parts import grid_labels
from semmae.parts.part_learner import PartLearner
from semmae.parts.spherical_kmeans import MAX_PATCHES, fit_token_clusters
from semmae.runs.run import Run
from semmae.training.parts_loop import train_part_learner
from stages.parts import PartsConfig, method_config

GROUP_SIZE = 32  # images whose patches count as one image in `GroupedLearner`


class EncodedImages(NamedTuple):
    """Images as the methods get them, and their true labels."""

    patch: Float[Tensor, "s n d"]
    attention: Float[Tensor, "s n"]  # of the class token; of the mean patch for a teacher without one
    counts: Integer[np.ndarray, "s n g"]  # pixels of each true label in each patch


@dataclass(frozen=True)
class LabelingTask:
    """What a method is fitted to."""

    section: PartsConfig
    teacher: Teacher
    sample: EncodedImages  # of train
    noise: float
    seed: int
    run: Run

    @property
    def num_labels(self) -> int:
        """Number of labels of baselines: one per part, and one for the background."""
        return self.section.num_parts + 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.teacher.grid(self.section.img_size)


class FittedLabeler(NamedTuple):
    """A fitted method.

    Attributes:
        num_labels: Number of labels.
        label: Returns the part maps of images from their patch tokens.
        background: The label of the background; None if the method has none.
    """

    num_labels: int
    label: Callable[[Float[Tensor, "b n d"]], Integer[np.ndarray, "b n"]]
    background: int | None = None


class GroupedLearner(PartLearner):
    """A part learner to which the patches of `GROUP_SIZE` images are one image.

    With it, the objective is I(label; patch) over a batch instead of I(label; patch | image).
    """

    def compute_keys(self, patch: Float[Tensor, "s n d"]) -> tuple[Float[Tensor, "g m e"], Float[Tensor, "g m"]]:
        """Return the keys and foreground shares of groups of images; images that fill no group are left out."""
        keys, share = super().compute_keys(patch)
        size = min(GROUP_SIZE, len(keys))
        groups = len(keys) // size
        return keys[: groups * size].reshape(groups, -1, keys.shape[-1]), share[: groups * size].reshape(groups, -1)


def fit_learned(task: LabelingTask, create: type[PartLearner] = PartLearner, **changes: Any) -> FittedLabeler:
    """Fit and train the part learner with changed settings; with `steps` 0, it stays at its start."""
    recipe = replace(task.section.learned, **changes)
    section = replace(task.section, method="learned", learned=recipe)
    model = create(method_config(section, task.teacher))
    model.fit(task.sample.patch, seed=fold(task.seed, "kmeans"))
    train_part_learner(recipe, model, task.sample.patch, seed=task.seed, run=task.run)
    model.eval().requires_grad_(False)

    def label(patch: Float[Tensor, "b n d"]) -> Integer[np.ndarray, "b n"]:
        return torch.cat([model.assign(_as_tokens(chunk)).argmax(1) for chunk in patch.split(CHUNK_SIZE)]).numpy()

    return FittedLabeler(model.num_labels, label, model.background)


def _as_tokens(patch: Float[Tensor, "b n d"]) -> Tokens:
    """Make the tokens of images from patch tokens alone; the part learner reads nothing else."""
    unused = patch.new_zeros(len(patch), 0)
    return Tokens(patch, unused, unused, unused[:, None], unused, patch)


def fit_plain_kmeans(task: LabelingTask) -> FittedLabeler:
    """Fit spherical k-means to tokens without their mean: `centered_kmeans` of part_scores."""
    clusters = fit_token_clusters(
        task.sample.patch, task.num_labels, centered=True, seed=fold(task.seed, "centered", 0)
    )
    return FittedLabeler(task.num_labels, lambda patch: clusters.assign(patch).numpy())


def fit_foreground_kmeans(task: LabelingTask) -> FittedLabeler | None:
    """Fit k-means within the foreground that attention finds; None with noise, because attention has no noise."""
    if task.noise:
        return None
    seed = fold(task.seed, "foreground", 0)
    clusters = fit_foreground_clusters(task.sample.patch, task.sample.attention, task.num_labels, seed=seed)
    count = 1 + len(clusters.second.centroids)
    return FittedLabeler(count, lambda patch: clusters.assign(patch).numpy(), background=0)


def fit_grid(task: LabelingTask) -> FittedLabeler:
    """Label patches by equal rectangles."""
    rectangles = grid_labels(task.grid, task.num_labels)
    return FittedLabeler(int(rectangles.max()) + 1, lambda patch: np.tile(rectangles, (len(patch), 1)))


def fit_position(task: LabelingTask) -> FittedLabeler:
    """Label patches by the most frequent true label of their position."""
    counts = task.sample.counts.sum(0)
    position = np.where(counts.any(1), majority_labels(counts), 0)
    return FittedLabeler(counts.shape[1], lambda patch: np.tile(position, (len(patch), 1)), background=0)


def fit_readout(task: LabelingTask) -> FittedLabeler:
    """Fit a supervised linear probe to some patches of the sample: the reference for methods without labels."""
    num_classes = task.sample.counts.shape[-1]
    tokens, true = task.sample.patch.flatten(0, 1).numpy(), majority_labels(task.sample.counts).ravel()
    chosen = numpy_generator(task.seed, "readout").permutation(len(tokens))[:MAX_PATCHES]
    probe = patch_probe.fit(tokens[chosen], true[chosen], num_classes=num_classes)

    def label(patch: Float[Tensor, "b n d"]) -> Integer[np.ndarray, "b n"]:
        return patch_probe.label(probe, patch.numpy(), num_classes=num_classes)

    return FittedLabeler(num_classes, label, background=0)


METHODS: dict[str, Callable[[LabelingTask], FittedLabeler | None]] = {
    "learned": fit_learned,
    "learned without training": partial(fit_learned, steps=0),
    "learned, no smoothing": partial(fit_learned, smoothing_steps=0),
    "learned, information without the image": partial(fit_learned, create=GroupedLearner, batch_size=1),
    "learned, keys by position": partial(fit_learned, keys="position"),
    "learned, foreground null": partial(fit_learned, foreground=None),
    "plain k-means": fit_plain_kmeans,
    "foreground k-means": fit_foreground_kmeans,
    "grid": fit_grid,
    "position": fit_position,
    "supervised read-out": fit_readout,
}
