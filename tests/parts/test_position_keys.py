"""Keys by position: tokens without position and brightness, and the position on the object."""

import torch
from torch.nn import functional

from semmae.parts.position_keys import OBJECT_CODE_DIM, PositionKeys
from tests.parts.planted import GRID, WIDTH, bright_scenes, half_objects

CLUSTERS = {"clusterings": 8, "clusters": 8, "center_prior": 0.0, "diffusion_steps": 0, "threshold_classes": 2}


def fitted(patch: torch.Tensor, *, foreground: dict | None = CLUSTERS, position_weight: float = 2.0) -> PositionKeys:
    keys = PositionKeys(foreground, grid=GRID, embed_dim=WIDTH, position_weight=position_weight)
    keys.fit(patch, seed=0)
    return keys


def test_prepared_tokens_do_not_depend_on_a_token_for_each_position():
    patch, _ = half_objects(50, 0)
    position = 5 * torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(3))
    plain, moved = fitted(patch, foreground=None), fitted(patch + position, foreground=None)
    torch.testing.assert_close(
        moved.prepare_tokens(patch + position).abs(), plain.prepare_tokens(patch).abs(), atol=1e-2, rtol=0
    )  # up to the signs of eigenvectors


def test_whitened_tokens_have_equal_variances():
    patch, _ = bright_scenes(200, 0)
    keys = fitted(patch, foreground=None)
    white = ((patch - keys.position_mean) @ keys.whiten).flatten(0, 1)
    covariance = white.T @ white / len(white)
    off_diagonal = covariance - covariance.diagonal().diag()
    assert off_diagonal.abs().max() < 1e-3
    assert covariance.diagonal().max() <= 1  # the shrinkage lowers small variances
    assert covariance.diagonal().max() > 0.98


def test_a_prepared_token_is_its_own_plus_the_mean_of_its_neighborhood():
    patch, _ = half_objects(20, 0)
    keys = fitted(patch, foreground=None)
    white = ((patch - keys.position_mean) @ keys.whiten).unflatten(1, GRID)
    expected = white[:, 4, 5] + white[:, 3:6, 4:7].mean((1, 2))
    torch.testing.assert_close(keys.prepare_tokens(patch).unflatten(1, GRID)[:, 4, 5], expected)


def test_the_foreground_is_found_if_tokens_vary_with_brightness():
    keys = fitted(bright_scenes(200, 0)[0])
    patch, part = bright_scenes(50, 1)
    found = keys(patch)[1] > 0.5
    assert ((part > 0) & found).sum() / ((part > 0) | found).sum() > 0.7


def test_the_weight_of_the_position_is_its_share_of_the_key():
    patch, _ = half_objects(50, 0)
    for weight in (0.0, 2.0):
        keys, _ = fitted(patch, position_weight=weight)(patch)
        assert keys.shape == (50, 64, WIDTH + OBJECT_CODE_DIM)
        length = keys[..., -OBJECT_CODE_DIM:].norm(dim=-1)
        torch.testing.assert_close(length, torch.full((50, 64), weight / (1 + weight**2) ** 0.5))


def test_with_much_weight_the_halves_of_an_object_have_different_keys():
    patch, part = half_objects(100, 0)
    keys, _ = fitted(patch)(patch)
    upper, lower = (functional.normalize(keys[part == k].mean(0), dim=0) for k in (1, 2))
    nearer_to_lower = keys @ lower > keys @ upper
    assert (nearer_to_lower[part > 0] == (part[part > 0] == 2)).float().mean() > 0.9


def test_without_a_foreground_every_patch_has_the_share_1():
    patch, _ = half_objects(20, 0)
    assert torch.equal(fitted(patch, foreground=None)(patch)[1], torch.ones(20, 64))
