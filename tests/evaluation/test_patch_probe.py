"""The read-out on planted classes."""

import numpy as np
import pytest

from semmae.evaluation import patch_probe


def planted(n: int, *, width: int = 12, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy class centers, far from zero mean and unit variance."""
    labels = np.arange(n) % classes
    noise = np.random.default_rng(seed).normal(size=(n, width))
    return 5 + 3 * (0.7 * noise + 2 * np.eye(width)[labels]), labels


def test_the_probe_finds_planted_labels_and_leaves_out_ignored_patches():
    (tokens, labels), (val, truth) = planted(600), planted(200, seed=1)
    found = patch_probe.fit(tokens, labels, num_classes=4).predict(val)
    assert (found == truth).mean() > 0.85
    junk, ignored = np.full((100, 12), 1e3), np.full(100, 255)
    fitted = patch_probe.fit(np.concatenate([tokens, junk]), np.concatenate([labels, ignored]), num_classes=4)
    assert np.array_equal(fitted.predict(val), found)


def test_a_probe_of_one_label_is_refused():
    with pytest.raises(ValueError, match=r"show 1 label.*expected at least 2"):
        patch_probe.fit(np.zeros((5, 2)), np.array([0, 0, 0, 255, 255]), num_classes=2)
