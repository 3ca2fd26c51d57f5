"""The foreground by content is found on planted objects, and its discriminant is that of scikit-learn."""

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch.nn import functional

from semmae.parts import component_foreground
from semmae.parts.component_foreground import ComponentForeground, fit_discriminant
from tests.parts.planted import GRID, WIDTH, object_scenes


def fitted(patch: torch.Tensor) -> ComponentForeground:
    foreground = ComponentForeground(grid=GRID, embed_dim=WIDTH)
    foreground.fit(patch)
    return foreground


def test_planted_objects_are_foreground():
    foreground = fitted(object_scenes(100, 0)[0])
    patch, part = object_scenes(50, 1)
    share = foreground(patch)
    assert ((share > 0.5) == (part > 0)).float().mean() > 0.99
    assert torch.equal(foreground.is_foreground(patch), share > 0.5)
    assert share.min() >= 0
    assert share.max() <= 1


def test_the_sign_and_the_scale_of_the_tokens_do_not_matter():
    patch, _ = object_scenes(50, 0)
    expected = fitted(patch)(patch)
    for changed in (-patch, 10 * patch, patch + 5):
        torch.testing.assert_close(fitted(changed)(changed), expected, atol=1e-3, rtol=0)


def test_the_discriminant_without_shrinkage_is_that_of_scikit_learn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(component_foreground, "SHRINKAGE", 0.0)
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator)
    tokens = torch.randn(10, 64, WIDTH, generator=generator) @ mixing
    labels = torch.rand(10, 64, generator=generator) < 0.3
    tokens[labels] += torch.randn(WIDTH, generator=generator)
    expected = LinearDiscriminantAnalysis(solver="lsqr").fit(tokens.flatten(0, 1), labels.flatten()).coef_[0]
    expected = functional.normalize(torch.from_numpy(expected).float(), dim=0)
    torch.testing.assert_close(fit_discriminant(tokens, labels), expected, atol=1e-4, rtol=0)


def test_the_discriminant_with_much_shrinkage_joins_the_means(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(component_foreground, "SHRINKAGE", 1e6)
    patch, part = object_scenes(20, 0)
    expected = functional.normalize(patch[part > 0].mean(0) - patch[part == 0].mean(0), dim=0)
    torch.testing.assert_close(fit_discriminant(patch, part > 0), expected, atol=1e-4, rtol=0)


def test_equal_tokens_are_refused():
    with pytest.raises(ValueError, match="no foreground found: all patch tokens are equal"):
        fitted(torch.ones(3, 64, WIDTH))
