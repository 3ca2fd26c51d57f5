"""Scores against scikit-learn on raw labels, closed forms and hand-made cases."""

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from sklearn.neighbors import KNeighborsClassifier

from semmae.evaluation import classification_metrics

CPU = torch.device("cpu")


@pytest.mark.parametrize("k", [1, 3, 5])
def test_topk_accuracy_equals_scikit_learn(k):
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(200, 7, generator=generator), torch.randint(7, (200,), generator=generator)
    expected = reference.top_k_accuracy_score(labels.numpy(), scores.numpy(), k=k, labels=range(7))
    assert classification_metrics.topk_accuracy(scores, labels, k=k) == pytest.approx(expected)


def test_equal_scores_rank_the_lower_class_first():
    labels = torch.tensor([0, 1, 2, 3])
    assert classification_metrics.topk_accuracy(torch.zeros(4, 4), labels, k=1) == 0.25


def test_per_class_accuracy_is_balanced_accuracy_over_the_classes_present():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(6, (300,), generator=generator) ** 2 // 5  # uneven, with gaps
    predictions = torch.where(torch.rand(300, generator=generator) < 0.6, labels, torch.zeros_like(labels))
    expected = reference.balanced_accuracy_score(labels.numpy(), predictions.numpy())
    assert classification_metrics.per_class_accuracy(predictions, labels) == pytest.approx(expected)


def test_compute_returns_all_metrics():
    scores = torch.eye(3)[[0, 1, 2, 0]]
    metrics = classification_metrics.compute(scores, torch.tensor([0, 1, 2, 2]))
    assert metrics == pytest.approx(
        {"top1": 0.75, "top5": 1.0, "per_class": (1 + 1 + 0.5) / 3, "top1_se": (0.75 * 0.25 / 4) ** 0.5}
    )


@pytest.mark.parametrize("chunk", [7, 64, 4096])
def test_knn_equals_scikit_learn_for_any_chunk_size(monkeypatch, chunk):
    monkeypatch.setattr(classification_metrics, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 150)
    train = rng.normal(size=(150, 8)) + np.eye(8)[labels]
    val = rng.normal(size=(60, 8)) + np.eye(8)[rng.integers(0, 5, 60)]
    judge = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = judge.fit(train, labels).predict_proba(val)
    votes = classification_metrics.knn_votes(
        torch.tensor(train),
        torch.tensor(labels),
        torch.tensor(val),
        num_classes=5,
        k=20,
        temperature=0.07,
        device=CPU,
    )
    np.testing.assert_allclose(votes.numpy(), expected, atol=1e-6)


def test_with_fewer_train_samples_than_k_all_of_them_vote():
    train = torch.eye(3)
    votes = classification_metrics.knn_votes(
        train, torch.tensor([0, 1, 1]), train[:1], num_classes=2, k=20, temperature=0.5, device=CPU
    )
    e = torch.tensor(1 / 0.5).exp()
    torch.testing.assert_close(votes, torch.tensor([[e / (e + 2), 2 / (e + 2)]]))


def test_votes_are_finite_at_a_small_temperature():
    train = torch.eye(2)
    votes = classification_metrics.knn_votes(
        train, torch.tensor([0, 1]), train, num_classes=2, k=2, temperature=1e-3, device=CPU
    )
    torch.testing.assert_close(votes, torch.eye(2))
