"""Baselines and references of part scores on scenes whose parts are known."""

import numpy as np
import pytest
import torch

from semmae.data.patch_masks import cell_counts
from semmae.evaluation import baselines, part_baselines
from semmae.evaluation.center_mask import CenterMask
from semmae.evaluation.part_evaluation import PartBatch, evaluate_labelers
from semmae.evaluation.part_references import fit_references
from semmae.models import vit
from semmae.models.teacher import Tokens

CONFIG = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
GRID, CLASSES = (4, 4), 3


def scene(seed: int, images: int = 12) -> PartBatch:
    """Red blocks on blue; their upper and lower halves are the parts, which tokens tell apart and colors do not."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((images, 32, 32), np.uint8)
    for mask in masks:
        top, left = 8 * rng.integers(0, 3, 2)
        mask[top : top + 8, left : left + 16] = 1
        mask[top + 8 : top + 16, left : left + 16] = 2
    pixels = np.where(
        masks[:, None] > 0, np.array([200, 30, 30])[:, None, None], np.array([30, 30, 200])[:, None, None]
    )
    pixels = (pixels + rng.integers(-20, 20, pixels.shape)).astype(np.uint8)
    counts = np.stack([cell_counts(mask, grid=GRID, num_classes=CLASSES) for mask in masks])
    truth = counts.argmax(2)
    patch = torch.from_numpy(np.eye(3)[truth] + 0.02 * rng.normal(size=(*truth.shape, 3))).float()
    images = torch.from_numpy(pixels)
    red_and_blue = part_baselines.patch_colors(images, GRID)[..., [0, 2]].transpose(1, 2)
    heads = (20 * red_and_blue).softmax(2)  # the reddest patches, and the bluest
    return PartBatch(images, Tokens(patch, patch.mean(1), heads.mean(1), heads, patch.mean(1), patch), counts)


@pytest.fixture(scope="module")
def found() -> dict:
    """Metrics of all baselines and references, fitted to a part of train."""
    train, val = [scene(0), scene(1)], [scene(2)]
    counts = sum(batch.counts.sum(0) for batch in train)
    generator = torch.Generator().manual_seed(0)

    def noise(images: torch.Tensor) -> Tokens:
        patch = torch.randn(len(images), 16, 3, generator=generator)
        heads = torch.full((len(images), 2, 16), 1 / 16)
        return Tokens(patch, patch.mean(1), heads.mean(1), heads, patch.mean(1), patch)

    labelers = part_baselines.fit_baselines(train[:1], counts, num_labels=3, grid=GRID, untrained=noise, seed=0)
    labelers |= fit_references(train[:1], CLASSES)
    return evaluate_labelers(labelers, CenterMask(counts), train, val, parts=True)


def test_colors_find_the_foreground_but_not_its_parts(found):
    assert found["color_kmeans"]["patch"]["fg_iou"] == 1
    assert found["color_kmeans"]["patch"]["nmi_fg"] < 0.5


def test_tokens_that_tell_parts_apart_do(found):
    assert found["readout"]["patch"] == pytest.approx(dict.fromkeys(found["readout"]["patch"], 1.0))
    assert found["teacher_kmeans"]["patch"]["fg_iou"] > 0.9  # parts one patch high are lost in their neighborhood


def test_heads_that_attend_to_the_foreground_find_it(found):
    assert found["attention_heads"]["patch"]["fg_iou"] > 0.5


def test_noise_finds_nothing(found):
    assert found["untrained_kmeans"]["patch"]["nmi_all"] < 0.1


def test_baselines_that_ignore_the_image_are_better_than_nothing_and_not_good(found):
    for baseline in ("position", "center_mask"):
        assert 0 < found[baseline]["patch"]["fg_iou"] < 0.9
    assert list(found["center_mask"]["patch"]) == ["fg_iou"]


def test_the_silhouette_has_no_parts_and_perfect_labels_have_no_patch_score(found):
    assert found["silhouette"]["patch"]["fg_iou"] == 1
    assert found["silhouette"]["patch"]["nmi_fg"] == 0
    assert list(found["perfect"]) == ["pixel"]
    assert found["perfect"]["pixel"]["fg_iou"] == 1  # these masks follow the grid


def test_the_center_mask_is_cut_where_train_fits_best():
    share = np.array([90, 60, 40, 5])  # of 100 pixels per cell
    total = np.stack([100 - share, share], axis=1)
    center = CenterMask(total)
    center.update_train(np.array([[0, 10], [0, 10], [0, 10], [10, 0]]))  # best: the first three cells
    center.update_val(np.array([[0, 10], [10, 0], [10, 0], [10, 0]]))
    assert center.compute() == {level: {"fg_iou": pytest.approx(1 / 3)} for level in ("patch", "pixel")}


def test_patch_colors_are_means_and_deviations():
    images = torch.zeros(1, 3, 4, 8, dtype=torch.uint8)
    images[0, 0, :, 4:] = 255  # the right patch is red
    images[0, 2, ::2, :4] = 255  # the left one striped in blue
    expected = torch.tensor([[[0, 0, 0.5, 0, 0, 0.5], [1, 0, 0, 0, 0, 0]]])
    torch.testing.assert_close(part_baselines.patch_colors(images, (1, 2)), expected)


def test_an_untrained_network_is_the_same_architecture_by_seed():
    state = torch.random.get_rng_state()
    first, again, other = (baselines.create_untrained(CONFIG, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    assert first.state_dict().keys() == vit.build(CONFIG).state_dict().keys()
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_a_timm_teacher_has_an_untrained_twin():
    network = baselines.create_untrained({"timm": "test_vit", "img_size": 32}, seed=0)
    assert network.patch_embed.img_size == (32, 32)
