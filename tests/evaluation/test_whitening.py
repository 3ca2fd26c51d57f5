"""Whitening against scikit-learn, and its invariance."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from semmae.evaluation import classification_metrics, whitening


@pytest.fixture
def features(state_root) -> torch.Tensor:
    """300 samples whose five directions differ in scale by a factor of up to 10,000, and a constant one."""
    generator = torch.Generator().manual_seed(0)
    scaled = torch.randn(300, 5, generator=generator) * torch.tensor([1.0, 1e2, 1e1, 3.0, 1e-2]) + 7
    return torch.cat([scaled[:, :4], scaled[:, 4:] * 1e2, torch.full((300, 1), 3.0)], dim=1)


@pytest.mark.parametrize("chunk", [7, 4096])
def test_whitening_equals_scikit_learn_up_to_signs_for_any_chunk_size(features, monkeypatch, chunk):
    monkeypatch.setattr(whitening, "CHUNK", chunk)
    judge = PCA(5, whiten=True).fit(features[:200].double().numpy())
    expected = judge.transform(features.double().numpy()) * np.sqrt(200 / 199)  # it divides by n - 1
    whitened = whitening.whiten(features, *whitening.fit(features[:200]))
    assert whitened.shape == (300, 5)  # without the constant direction
    np.testing.assert_allclose((whitened @ whitened.T).numpy(), expected @ expected.T, rtol=1e-3, atol=1e-3)


def test_neighbors_are_invariant_to_linear_maps_of_the_features(features):
    labels = torch.arange(200) % 3
    mixed = features @ torch.randn(6, 6, generator=torch.Generator().manual_seed(1))

    def votes(x: torch.Tensor) -> torch.Tensor:
        return classification_metrics.knn_votes(
            x[:200], labels, x[200:], num_classes=3, k=5, temperature=0.5, device=torch.device("cpu")
        )

    straight, sheared = (votes(whitening.whiten(x, *whitening.fit(x[:200]))) for x in (features, mixed))
    torch.testing.assert_close(straight, sheared, rtol=1e-3, atol=1e-3)
    assert (votes(mixed) - votes(features)).abs().max() > 0.1
