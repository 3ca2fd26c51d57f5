"""Clusterings of tokens on clusters that are known."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from semmae.evaluation.patch_clusterings import (
    attention_votes,
    fit_foreground_clusters,
)
from semmae.parts.spherical_kmeans import fit_token_clusters, subsample

BACKGROUNDS, PARTS = 2, 3  # clusters


def tokens_of(labels: torch.Tensor, *, offset: float = 0.0) -> torch.Tensor:
    """Return tokens near a unit vector per label, plus the same vector for all."""
    noise = 0.02 * torch.randn(*labels.shape, 8, generator=torch.Generator().manual_seed(0))
    return torch.eye(8)[labels] + offset * torch.ones(8) + noise


def scenes(images: int = 30) -> torch.Tensor:
    """Return labels (images, 20): 0 and 1 are background, 2 to 4 are parts."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, BACKGROUNDS + PARTS, (images, 20), generator=generator)


def agreement(found: torch.Tensor, true: torch.Tensor) -> float:
    return adjusted_rand_score(found.flatten(), true.flatten())


def test_votes_count_the_images_in_which_a_cluster_has_more_than_the_mean_attention():
    labels = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]])
    attention = torch.tensor([[0.1, 0.1, 0.4, 0.4], [0.4, 0.2, 0.2, 0.2], [0.25, 0.25, 0.25, 0.25]])
    assert attention_votes(labels, attention, 3).tolist() == pytest.approx([1 / 2, 1 / 3, 0])


def test_attention_separates_the_foreground_and_its_parts_are_clustered():
    labels = scenes()
    attention = torch.where(labels >= BACKGROUNDS, 2.0, 0.5)
    clusters = fit_foreground_clusters(tokens_of(labels), attention / attention.sum(1, keepdim=True), 1 + PARTS, seed=0)
    found = clusters.assign(tokens_of(labels))
    assert ((found > 0) == (labels >= BACKGROUNDS)).all()
    assert agreement(found, (labels - BACKGROUNDS + 1).clamp(min=0)) == 1


def test_attention_that_finds_nothing_leaves_the_clusters_with_the_most_votes():
    labels = scenes()
    uniform = torch.full(labels.shape, 1 / 20)
    found = fit_foreground_clusters(tokens_of(labels), uniform, 3, seed=0).assign(tokens_of(labels))
    assert set(found.unique().tolist()) <= {0, 1, 2}
    assert (found > 0).any()


def test_a_token_that_all_patches_share_is_subtracted():
    labels = scenes()
    tokens = tokens_of(labels, offset=100.0)
    clusters = fit_token_clusters(tokens, BACKGROUNDS + PARTS, centered=True, seed=0)
    assert agreement(clusters.assign(tokens), labels) == 1


def test_the_length_of_a_token_does_not_matter():
    labels = scenes()
    lengths = 1 + 9 * torch.rand(*labels.shape, 1, generator=torch.Generator().manual_seed(2))
    clusters = fit_token_clusters(lengths * tokens_of(labels), BACKGROUNDS + PARTS, centered=False, seed=0)
    assert agreement(clusters.assign(lengths * tokens_of(labels)), labels) == 1
    assert torch.equal(clusters.assign(tokens_of(labels)), clusters.assign(7 * tokens_of(labels)))


def test_a_subsample_has_distinct_rows_and_depends_on_the_seed():
    rows = torch.arange(100.0)[:, None]
    first, again, other = (subsample(rows, 30, seed=seed).flatten().tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert len(np.unique(first)) == 30
    assert subsample(rows, 100, seed=0) is rows
