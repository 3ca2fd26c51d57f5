"""Keys by content are directions from the background, smoothed among similar patches."""

import torch
from torch.nn import functional

from semmae.parts.content_keys import NEAR, OWN_WEIGHT, ContentKeys, denoising_matrix, patch_nearness, smooth
from semmae.parts.foreground import patch_affinity
from tests.parts.planted import GRID, WIDTH, object_scenes

NEARNESS = patch_nearness(GRID)


def fitted(patch: torch.Tensor, *, background: bool = True) -> ContentKeys:
    keys = ContentKeys(grid=GRID, embed_dim=WIDTH, smoothing_steps=2, background=background)
    keys.fit(patch)
    return keys


def test_smoothing_leaves_an_image_of_equal_patches_unchanged():
    tokens = torch.randn(3, 1, WIDTH, generator=torch.Generator().manual_seed(0)).expand(3, 64, WIDTH)
    torch.testing.assert_close(smooth(tokens, NEARNESS, steps=3), tokens)


def test_smoothing_in_0_steps_changes_nothing():
    tokens = torch.randn(3, 64, WIDTH)
    assert torch.equal(smooth(tokens, NEARNESS, steps=0), tokens)


def test_a_step_of_smoothing_mixes_a_patch_with_the_mean_of_similar_and_near_ones():
    patch, _ = object_scenes(2, 0)
    weights = patch_affinity(patch) * NEARNESS
    mean = weights / weights.sum(-1, keepdim=True) @ patch
    torch.testing.assert_close(smooth(patch, NEARNESS, steps=1), OWN_WEIGHT * patch + (1 - OWN_WEIGHT) * mean)


def test_smoothing_lowers_the_variance_within_a_part_and_keeps_parts_apart():
    patch, part = object_scenes(20, 0)
    smoothed = smooth(patch, NEARNESS, steps=4)
    for k in range(1, 4):
        assert smoothed[part == k].var(0).mean() < 0.3 * patch[part == k].var(0).mean()
    means = [torch.stack([tokens[part == k].mean(0) for k in range(1, 4)]) for tokens in (patch, smoothed)]
    assert torch.pdist(means[1]).min() > 0.7 * torch.pdist(means[0]).min()


def test_the_origin_is_the_mean_background():
    patch, part = object_scenes(100, 0)
    torch.testing.assert_close(fitted(patch).origin, patch[part == 0].mean(0), atol=0.02, rtol=0)
    without = fitted(patch, background=False)
    torch.testing.assert_close(without.origin, patch.mean((0, 1)))
    keys, share = without(patch)
    assert torch.equal(share, torch.ones(100, 64))
    torch.testing.assert_close(keys.norm(dim=-1), torch.ones(100, 64))


def test_the_direction_from_the_origin_decides_and_not_the_distance():
    """A patch that is half background has the key of its part."""
    patch, _ = object_scenes(50, 0)
    keys = fitted(patch)
    halfway = keys.origin + 0.5 * (patch - keys.origin)
    torch.testing.assert_close(keys(halfway)[0], keys(patch)[0], atol=0.03, rtol=0)


def test_keys_of_a_part_agree_across_images_and_those_of_two_parts_do_not():
    patch, part = object_scenes(50, 0)
    keys, _ = fitted(patch)(patch)
    centers = functional.normalize(torch.stack([keys[part == k].mean(0) for k in range(1, 4)]), dim=-1)
    cosine = keys[part > 0] @ centers.T
    assert torch.equal(cosine.argmax(1) + 1, part[part > 0])


def test_nearness_is_a_gaussian_of_the_distance():
    side = GRID[0]
    torch.testing.assert_close(NEARNESS.diagonal(), torch.ones(side * side))
    across = torch.tensor((side - 1) / side)  # from the first to the last column
    torch.testing.assert_close(NEARNESS[0, side - 1], torch.exp(-(across**2) / (2 * NEAR**2)))


def test_denoising_recovers_the_signal_of_few_directions():
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(5000, 2, generator=generator) @ torch.randn(2, 32, generator=generator)
    noisy = signal + torch.randn(5000, 32, generator=generator)
    error = (noisy @ denoising_matrix(noisy) - signal).square().mean()
    assert error < 0.15  # the noise alone has 1, and 2 of its 32 directions are those of the signal


def test_denoising_keeps_tokens_without_noise():
    signal = torch.randn(500, 3) @ torch.randn(3, 16)
    torch.testing.assert_close(signal @ denoising_matrix(signal), signal, atol=1e-3, rtol=0)
