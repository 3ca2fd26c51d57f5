"""Foreground of planted objects is found without labels, and object codes depend on the position on the object."""

import pytest
import torch
from torch.nn import functional

from semmae.parts import foreground
from semmae.parts.foreground import ClusterForeground
from tests.parts.planted import GRID, WIDTH, half_objects

CONFIG = {"clusterings": 8, "clusters": 8, "center_prior": 0.0, "diffusion_steps": 0, "threshold_classes": 2}


def test_content_near_the_center_is_foreground():
    tokens, part = half_objects(200, 0)
    model = ClusterForeground(CONFIG, grid=GRID, embed_dim=WIDTH)
    model.fit(tokens, tokens, seed=0)
    tokens, part = half_objects(50, 1)
    found = model(tokens, tokens) > 0.5
    assert ((part > 0) & found).sum() / ((part > 0) | found).sum() > 0.95


def test_position_alone_decides_if_all_content_is_equal():
    model = ClusterForeground(CONFIG | {"center_prior": 1.0}, grid=GRID, embed_dim=WIDTH)
    tokens = functional.normalize(torch.ones(1, 64, WIDTH), dim=-1)
    share = model(tokens, tokens).reshape(GRID)
    torch.testing.assert_close(share, share.flip(0))
    torch.testing.assert_close(share, share.T)
    assert share[4, 4] > share[4, 6] > share[4, 7] > share[7, 7]


def test_scores_diffuse_among_similar_patches_only():
    """Two kinds of patches in one image: diffusion leads to the mean of each kind."""
    kinds = functional.normalize(torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(3)), dim=-1)
    kind = torch.arange(64) % 2
    score = torch.rand(1, 64, generator=torch.Generator().manual_seed(4)) + kind
    affinity = foreground.patch_affinity(kinds[kind][None])
    torch.testing.assert_close(affinity.sum(2), torch.ones(1, 64))
    assert torch.equal(foreground.diffuse(score, affinity, steps=0), score)
    diffused = foreground.diffuse(score, affinity, steps=60)
    restart = foreground.RESTART_PROBABILITY
    for k in (0, 1):
        mean = score[:, kind == k].mean()
        expected = restart * score[:, kind == k] + (1 - restart) * mean  # the fixed point for one kind
        torch.testing.assert_close(diffused[:, kind == k], expected, atol=2e-3, rtol=0)


def test_otsu_threshold_is_the_midpoint_of_the_split_with_the_least_variance_within():
    values = torch.cat([torch.randn(30), torch.randn(10) + 6])[None].double()
    ranked = values[0].sort().values
    splits = [(ranked[:k], ranked[k:]) for k in range(1, 40)]
    low, high = min(splits, key=lambda pair: sum(((part - part.mean()) ** 2).sum() for part in pair))
    torch.testing.assert_close(foreground.otsu_threshold(values), (low.mean() + high.mean())[None] / 2)
    assert foreground.otsu_threshold(torch.ones(2, 5)).tolist() == [1, 1]


def test_the_separation_is_the_share_of_the_variance_between_both_classes():
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.randn(30, generator=generator), torch.randn(10, generator=generator) + 6]).double()
    split = values > foreground.otsu_threshold(values[None])
    within = sum(((part - part.mean()) ** 2).sum() for part in (values[split], values[~split]))
    expected = 1 - within / ((values - values.mean()) ** 2).sum()
    assert foreground.otsu_separation(values[None]) == pytest.approx(expected.item())
    assert foreground.otsu_separation(torch.tensor([[0.0, 0.0, 3.0], [3.0, 3.0, 0.0]])) == pytest.approx(1)
    assert foreground.otsu_separation(torch.ones(2, 5)) == 0


def test_content_without_a_preference_for_the_center_is_refused():
    equal = functional.normalize(torch.ones(20, 64, WIDTH), dim=-1)
    model = ClusterForeground(CONFIG | {"clusters": 2}, grid=GRID, embed_dim=WIDTH)
    with pytest.raises(ValueError, match=r"no foreground found: .* Set parts\.learned\.foreground to null"):
        model.fit(equal, equal, seed=0)


def test_fewer_patches_than_clusters_are_refused_with_what_to_change():
    patch, _ = half_objects(3, 0)
    with pytest.raises(
        ValueError, match=r"clusters is 200, but 3 images have 192 patches; lower it, or raise parts\.num_images"
    ):
        ClusterForeground(CONFIG | {"clusters": 200}, grid=GRID, embed_dim=WIDTH).fit(patch, patch, seed=0)


def test_the_object_code_moves_and_scales_with_the_object():
    def code(top: int, left: int, height: int, width: int) -> torch.Tensor:
        share = torch.zeros(12, 12)
        share[top : top + height, left : left + width] = 1
        return foreground.object_code(share.flatten()[None], (12, 12)).reshape(12, 12, 4)

    small, moved, large = code(1, 2, 3, 4), code(6, 7, 3, 4), code(1, 1, 9, 12)
    torch.testing.assert_close(small[1:4, 2:6], moved[6:9, 7:11])
    torch.testing.assert_close(small[2, 3], small[2, 4])  # left and right are equal
    assert not torch.allclose(small[1, 3], small[3, 3])  # above and below differ
    torch.testing.assert_close(small.norm(dim=-1), torch.ones(12, 12))
    middle = large[5, 5]  # the middle row of nine, as row 2 is the middle row of three
    torch.testing.assert_close(small[2, 3, :2], middle[:2])


def test_an_image_without_foreground_counts_as_all_foreground():
    nothing, everything = torch.zeros(1, 64), torch.ones(1, 64)
    torch.testing.assert_close(foreground.object_code(nothing, GRID), foreground.object_code(everything, GRID))
