"""Foreground of planted objects is found without labels, and object codes depend on the position on the object."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch.nn import functional

from semmae.models.teacher import Tokens
from semmae.parts import foreground, part_learner
from semmae.parts.foreground import Foreground

GRID, WIDTH = (8, 8), 16
CONFIG = {"clusterings": 8, "clusters": 8, "center_prior": 0.0, "diffusion_steps": 0, "threshold_classes": 2}
LEARNER = {
    "num_parts": 2, "grid": GRID, "embed_dim": WIDTH, "background": True, "class_token": False,
    "foreground": CONFIG, "position_weight": 2.0, "temperature": 0.1, "blur_sigma": 0.0,
    "decoder_width": 8, "decoder_depth": 1, "target_dim": WIDTH,
}  # fmt: skip


def planted(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit tokens (b, n, d) and parts (b, n) of scenes with an object near the center.

    The object is 4 patches high and 3 wide. Parts are 0 for the background, 1 for the upper and 2 for the lower half of
    the object. The tokens of both halves have the same distribution.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(5))
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    corner = torch.randint(1, 5, (images, 2, 1, 1), generator=generator)
    height, width = rows - corner[:, 0], columns - corner[:, 1]
    inside = (height >= 0) & (height < 4) & (width >= 0) & (width < 3)
    scenery = torch.randint(2, 8, (images, 8, 8), generator=generator)
    object_kind = torch.randint(0, 2, (images, 1, 1), generator=generator).expand(-1, 8, 8)
    kind = torch.where(inside, object_kind, scenery).flatten(1)
    patch = kinds[kind] + 0.1 * torch.randn(images, 64, WIDTH, generator=generator)
    part = torch.where(inside, 1 + (height >= 2).long(), 0).flatten(1)
    return functional.normalize(patch, dim=-1), part


def test_content_near_the_center_is_foreground():
    tokens, part = planted(200, 0)
    model = Foreground(CONFIG, grid=GRID, embed_dim=WIDTH)
    model.fit(tokens, tokens, seed=0)
    tokens, part = planted(50, 1)
    found = model(tokens, tokens) > 0.5
    assert ((part > 0) & found).sum() / ((part > 0) | found).sum() > 0.95


def test_position_alone_decides_if_all_content_is_equal():
    model = Foreground(CONFIG | {"center_prior": 1.0}, grid=GRID, embed_dim=WIDTH)
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


def test_content_without_a_preference_for_the_center_is_refused():
    equal = functional.normalize(torch.ones(20, 64, WIDTH), dim=-1)
    model = Foreground(CONFIG | {"clusters": 2}, grid=GRID, embed_dim=WIDTH)
    with pytest.raises(ValueError, match=r"no foreground found: .* Set parts\.learned\.foreground to null"):
        model.fit(equal, equal, seed=0)


def test_fewer_patches_than_clusters_or_parts_are_refused_with_what_to_change():
    patch, _ = planted(3, 0)
    with pytest.raises(
        ValueError, match=r"clusters is 200, but 3 images have 192 patches; lower it, or raise parts\.num_images"
    ):
        Foreground(CONFIG | {"clusters": 200}, grid=GRID, embed_dim=WIDTH).fit(patch, patch, seed=0)
    patch, _ = planted(200, 0)
    learner = part_learner.PartLearner(LEARNER | {"num_parts": 4000})
    with pytest.raises(ValueError, match=r"num_parts is 4000, but \d+ patches of 200 images are foreground; lower it"):
        learner.fit(patch, seed=0)


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


def test_the_learner_keeps_background_in_one_label_and_separates_parts_by_position():
    model = part_learner.PartLearner(LEARNER)
    patch, _ = planted(200, 0)
    model.fit(patch, seed=0)
    patch, truth = planted(50, 1)
    tokens = Tokens(patch, patch.mean(1), patch[..., 0], patch[:, None, :, 0], patch.mean(1), patch)
    found = model.assign(tokens).argmax(1)
    assert (found[truth == 0] == model.background).float().mean() > 0.95
    inside = truth > 0
    assert adjusted_rand_score(np.asarray(truth[inside]), np.asarray(found[inside])) > 0.8
