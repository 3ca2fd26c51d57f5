"""Baselines and references of part scores on scenes whose parts are known."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from semmae.data.patch_masks import cell_counts
from semmae.evaluation import baselines, part_baselines
from semmae.evaluation.center_mask import CenterMask
from semmae.evaluation.foreground_baselines import mean_iou
from semmae.evaluation.part_evaluation import PartBatch, PatchLabeler, average, evaluate_labelers
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
    untrained = torch.from_numpy(rng.normal(size=(*truth.shape, 3))).float()
    return PartBatch(
        images, Tokens(patch, patch.mean(1), heads.mean(1), heads, patch.mean(1), patch), counts, untrained
    )


@pytest.fixture(scope="module")
def labelers() -> dict[str, list[PatchLabeler]]:
    """All baselines and references, fitted to a part of train, with two clusterings each."""
    counts = scene(0).counts.sum(0) + scene(1).counts.sum(0)
    fitted = part_baselines.fit_baselines([scene(0)], counts, num_labels=3, grid=GRID, seed=0, seeds=2)
    return fitted | {name: [labeler] for name, labeler in fit_references([scene(0)], CLASSES).items()}


@pytest.fixture(scope="module")
def found(labelers) -> dict:
    """Metrics of all baselines and references."""
    train, val = [scene(0), scene(1)], [scene(2)]
    center_mask = CenterMask(sum(batch.counts.sum(0) for batch in train))
    evaluated = evaluate_labelers(labelers, center_mask, train, val, num_classes=CLASSES, grid=GRID, parts=True)
    means = {name: average([one.compute() for one in clusterings])[0] for name, clusterings in evaluated.items()}
    return means | {"center_mask": center_mask.compute()}


def test_colors_find_the_foreground_but_not_its_parts(found):
    assert found["color_kmeans"]["patch"]["fg_iou"] == 1
    assert found["color_kmeans"]["patch"]["nmi_fg"] < 0.5


@pytest.mark.parametrize("name", ["teacher_kmeans", "centered_kmeans", "foreground_kmeans", "readout"])
def test_tokens_that_tell_parts_apart_do(found, name):
    metrics = found[name]["patch"]
    perfect = dict.fromkeys(metrics, 1.0) | {"labels": 3, "place": metrics["place"]}
    assert metrics == pytest.approx(perfect)


def test_clusterings_of_tokens_are_those_of_scikit_learn(labelers):
    batch = scene(2)
    tokens = batch.tokens.patch.flatten(0, 1).numpy()
    reference = KMeans(3, n_init=10, random_state=1).fit_predict(tokens / np.linalg.norm(tokens, axis=1)[:, None])
    for labeler in labelers["teacher_kmeans"]:
        assert adjusted_rand_score(labeler.label(batch).ravel(), reference) == 1


def test_each_clustering_has_its_own_seed(labelers):
    batch = scene(2)
    first, second = (labeler.label(batch) for labeler in labelers["untrained_kmeans"])
    assert (first != second).any()
    assert all(len(labelers[name]) == 2 for name in ("color_kmeans", "teacher_kmeans", "foreground_kmeans"))
    assert len(labelers["grid"]) == len(labelers["normalized_cut"]) == 1


@pytest.mark.parametrize("name", ["attention_best_head", "normalized_cut", "pca_foreground"])
def test_baselines_of_the_foreground_find_it(found, name):
    for level in ("patch", "pixel"):
        assert set(found[name][level]) == {"labels", "fg_iou"}
    assert found[name]["patch"]["fg_iou"] > 0.95


def test_a_mean_iou_leaves_out_ignored_patches_and_images_without_foreground():
    true = torch.tensor([[1, 2, 0, 255], [0, 0, 255, 0]])
    assert mean_iou(torch.tensor([[True, False, True, True], [True] * 4]), true) == pytest.approx(1 / 3)
    assert mean_iou(torch.ones(1, 4).bool(), true[1:]) == 0


def test_too_few_patches_give_a_clear_error():
    with pytest.raises(ValueError, match="16; expected at least the number of labels, 17"):
        part_baselines.fit_baselines(
            [scene(0, images=1)], scene(0).counts.sum(0), num_labels=17, grid=GRID, seed=0, seeds=1
        )


def test_the_mean_over_clusterings_has_a_deviation():
    first, second = {"patch": {"labels": 3, "miou": 0.2}}, {"patch": {"labels": 3, "miou": 0.4}}
    means, deviations = average([first, second])
    assert means == {"patch": {"labels": 3, "miou": pytest.approx(0.3)}}
    assert deviations == {"patch": {"miou": pytest.approx(0.02**0.5)}}
    assert average([first]) == (first, {"patch": {}})


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
    assert found["silhouette"]["patch"]["place"] == 0
    assert set(found["perfect"]["patch"]) == {"labels", "place"}
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
