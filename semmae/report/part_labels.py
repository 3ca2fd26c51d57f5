"""Label the patches of images for pictures: by their parts, by plain k-means of the teacher's tokens, by true masks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8

from semmae.core.rng import fold, numpy_generator
from semmae.data.dataset import Reader
from semmae.data.decoding import IGNORE
from semmae.data.loader import batches
from semmae.data.patch_masks import WholeView, majority_labels
from semmae.data.transforms import FullImage
from semmae.evaluation.object_position import describe_place, place_of_maps
from semmae.evaluation.part_metrics import contingency, foreground_labels, match_labels
from semmae.models import vit
from semmae.models.teacher import Teacher, Tokens
from semmae.parts.part_method import PartMethod
from semmae.parts.spherical_kmeans import MAX_PATCHES, TokenClusters, fit_token_clusters
from semmae.report.figures import choose_images

UNCOLORED = 255  # a label that no palette colors


@dataclass(frozen=True)
class LabeledImages:
    """Images of one dataset and the labels of their patches.

    Attributes:
        reader: The images.
        method: The part method.
        probabilities: The probability of each label of the part method at each patch; the background is last.
        clusters: The cluster of each patch. There are as many clusters as labels.
        counts: Pixels of each true label in each patch; None without masks.
    """

    reader: Reader
    method: PartMethod
    probabilities: Float[np.ndarray, "b p n"]
    clusters: Integer[np.ndarray, "b n"]
    counts: Integer[np.ndarray, "b n g"] | None

    @cached_property
    def labels(self) -> Integer[np.ndarray, "b n"]:
        """The part map of each image."""
        return self.probabilities.argmax(1)

    @property
    def num_background(self) -> int:
        """1 if the true label 0 is the background, 0 if the masks hold classes."""
        return int(self.reader.mask_kind != "classes")

    @cached_property
    def true_table(self) -> Integer[np.ndarray, "p g"]:
        """Number of pixels of each true label under each label of the part method."""
        assert self.counts is not None
        tables = (
            contingency(labels, counts, num_labels=self.method.num_labels, level="pixel")
            for labels, counts in zip(self.labels, self.counts, strict=True)
        )
        return sum(tables, np.zeros((self.method.num_labels, self.counts.shape[2]), np.int64))

    def describe_place(self) -> str:
        """Tell how far the position on the object explains the labels; "" if the foreground is unknown."""
        if self.method.background is not None:  # as in part_scores
            foreground = self.labels != self.method.background
        elif self.counts is not None and self.num_background:
            foreground = foreground_labels(self.true_table)[self.labels]
        else:
            return ""
        true_place = None
        if self.counts is not None and self.reader.mask_kind == "parts":
            true = majority_labels(self.counts)
            is_part = (true > 0) & (true != IGNORE)
            true_place = place_of_maps(np.where(is_part, true, 0), is_part, self.method.grid)
        return describe_place(place_of_maps(self.labels, foreground, self.method.grid), true_place)

    @cached_property
    def color_of_cluster(self) -> UInt8[np.ndarray, " p"]:
        """The label of the part method that is matched to each cluster; both get the same color."""
        count = self.method.num_labels
        pairs = self.labels.ravel() * count + self.clusters.ravel()
        return match_labels(np.bincount(pairs, minlength=count**2).reshape(count, count)).astype(np.uint8)

    @cached_property
    def color_of_true_label(self) -> UInt8[np.ndarray, "256"]:
        """The part that is matched to each value of a mask; both get the same color.

        True labels that are matched to no part have numbers from `num_parts` on. The background and ignored pixels are
        `UNCOLORED`.
        """
        matched = match_labels(self.true_table[: self.method.num_parts, self.num_background :])
        matched[matched < 0] = self.method.num_parts + np.arange((matched < 0).sum())
        colors = np.full(256, UNCOLORED, np.uint8)
        colors[self.num_background : self.num_background + len(matched)] = matched
        return colors


def label_images(reader: Reader, teacher: Teacher, method: PartMethod, *, count: int, seed: int) -> LabeledImages:
    """Choose images and label their patches. K-means is fitted to train, or without train to the split of the reader.

    Args:
        reader: The images to choose from. If any have masks, images without masks are not chosen.
        teacher: The teacher of the part method.
        method: Assigns parts to patches.
        count: The maximum number of images.
        seed: Selects the images and starts k-means.
    """
    train = Reader(reader.dataset, "train") if "train" in reader.meta["samples"] else reader
    if reader.has_mask.any():
        reader = reader.select(np.flatnonzero(reader.has_mask))
    reader = reader.select(choose_images(len(reader), count=count, seed=seed))
    fitted = fit_clusters(train, teacher, method, seed=seed)
    probabilities, clusters = [], []
    for tokens, shares in assign_images(reader, teacher, method):
        probabilities.append(shares)
        clusters.append(fitted.assign(tokens.patch))
    counts = None
    if reader.has_mask.any():
        view = WholeView(method.config["img_size"], method.grid, num_classes=len(reader.mask_names))
        counts = np.stack([view.counts(reader, index) for index in range(len(reader))])
    return LabeledImages(reader, method, torch.cat(probabilities).numpy(), torch.cat(clusters).numpy(), counts)


def assign_images(
    reader: Reader, teacher: Teacher, method: PartMethod
) -> Iterator[tuple[Tokens, Float[torch.Tensor, "b p n"]]]:
    """Yield the tokens and the shares of the labels of all images, in batches.

    Raises:
        ValueError: The method cannot label the images.
    """
    for batch, tokens in _encode_images(reader, teacher, method, method.view(reader)):
        yield tokens, method.assign(tokens, batch.get("counts"))


def label_probabilities(reader: Reader, teacher: Teacher, method: PartMethod) -> Float[np.ndarray, "b p n"]:
    """Compute the probability of each label (p; the background is last) at each patch (n) of the whole images."""
    return torch.cat([shares for _, shares in assign_images(reader, teacher, method)]).numpy()


def fit_clusters(train: Reader, teacher: Teacher, method: PartMethod, *, seed: int) -> TokenClusters:
    """Fit spherical k-means to the teacher's tokens of random images, minus their mean.

    There are as many clusters as labels of the part method.
    """
    num_images = -(-MAX_PATCHES // (method.grid[0] * method.grid[1]))
    sample = train.select(numpy_generator(seed, "clusters").permutation(len(train))[:num_images])
    encoded = _encode_images(sample, teacher, method, FullImage(method.config["img_size"], seed=0, flip=0.0))
    tokens = torch.cat([tokens.patch for _, tokens in encoded])
    return fit_token_clusters(tokens, method.num_labels, centered=True, seed=fold(seed, "clusters"))


def _encode_images(
    reader: Reader, teacher: Teacher, method: PartMethod, view: Callable[[Reader, int], dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], Tokens]]:
    """Yield batches of the views of all images, with their tokens."""
    vit.use_fastest_attention(teacher, torch.device("cpu"), frozen_grid=method.grid)
    for batch in batches(reader, np.arange(len(reader)), view, batch_size=32, workers=0):
        yield batch, teacher.encode(batch["image"])
