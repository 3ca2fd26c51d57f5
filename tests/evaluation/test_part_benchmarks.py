"""Benchmarks are read in the layout of their authors, and their scores equal scikit-learn and closed forms."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from semmae.evaluation.part_benchmarks.celeba import read_celeba
from semmae.evaluation.part_benchmarks.cub import read_cub
from semmae.evaluation.part_benchmarks.part_imagenet import read_part_imagenet
from semmae.evaluation.part_benchmarks.scoring import PartLabeling, score
from semmae.parts.part_method import PartMethod
from tests import benchmark_trees as trees

SIDE, GRID = 32, (8, 8)


def by_color(images: Tensor) -> Tensor:
    """Return the share of black, red, green and blue in each patch; a red patch has label 0, black is the last."""
    colors = torch.tensor([*trees.COLORS[1:], trees.COLORS[0]]).float()
    pixels = images.float().permute(0, 2, 3, 1)
    nearest = torch.cdist(pixels.flatten(1, 2), colors[None]).argmin(2)
    labels = torch.nn.functional.one_hot(nearest, 4).float().permute(0, 2, 1).unflatten(2, (SIDE, SIDE))
    return torch.nn.functional.avg_pool2d(labels, SIDE // GRID[0]).flatten(2)


def labeling(assign: Callable[[Tensor], Tensor] = by_color) -> PartLabeling:
    method = PartMethod({"grid": GRID, "img_size": SIDE, "num_parts": 3, "background": True})
    return PartLabeling(assign, method, batch_size=2, workers=0)


@pytest.fixture
def cub(tmp_path) -> Path:
    trees.write_cub(tmp_path)
    return tmp_path


@pytest.fixture
def celeba(tmp_path) -> Path:
    trees.write_celeba(tmp_path)
    return tmp_path


def test_cub_is_read_as_published(cub):
    benchmark = read_cub(cub)
    assert benchmark.train.keys == [f"{i:03d}.Bird/Bird_{i:04d}.jpg" for i in (1, 2, 3)]
    assert benchmark.fit.images is benchmark.train
    test = benchmark.test
    assert test.images.keys == [f"{i:03d}.Bird/Bird_{i:04d}.jpg" for i in (4, 5, 6)]
    assert test.points[0].tolist() == [[12, 8], [28, 8], [0, 0]]
    assert test.visible.tolist() == [[True, True, False], [True, True, True], [True, True, False]]
    assert test.boxes is not None
    assert test.boxes[1].tolist() == [8, 0, 32, 32]
    assert test.images.size(0) == (32, 64)


def test_labels_that_follow_the_keypoints_of_cub_are_perfect(cub):
    scores = score(read_cub(cub), labeling())
    assert scores == pytest.approx({"nmi": 1, "ari": 1, "keypoint_error": 0}, abs=1e-9)


def test_scores_of_cub_equal_scikit_learn_on_all_visible_keypoints(cub):
    maps = torch.rand(4, 64, generator=torch.Generator().manual_seed(0))
    benchmark = read_cub(cub)
    test = benchmark.test
    predicted, true = [], []
    for index, keypoint in np.argwhere(test.visible):
        position = test.points[index, keypoint, ::-1] / (32, 64) * 8 - 0.5  # row and column between centers of patches
        shares = [
            map_coordinates(m, position[:, None], order=1, mode="nearest")[0] for m in maps.numpy().reshape(4, 8, 8)
        ]
        predicted.append(np.argmax(shares))
        true.append(keypoint)
    scores = score(benchmark, labeling(lambda images: maps.expand(len(images), 4, 64)))
    assert scores["nmi"] == pytest.approx(normalized_mutual_info_score(true, predicted))
    assert scores["ari"] == pytest.approx(adjusted_rand_score(true, predicted))
    # parts that do not move predict the mean keypoint, and these keypoints have fixed places in the box
    assert scores["keypoint_error"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("images.txt", None, "images.txt does not exist; expected the folder CUB_200_2011 with images.txt"),
        ("parts/part_locs.txt", lambda text: text.replace("4 2 28.0 8.0 1\n", ""), "part_locs.txt: no line for 4 2"),
        ("bounding_boxes.txt", lambda text: text.replace("32.0", "wide"), "bounding_boxes.txt: could not convert"),
        ("bounding_boxes.txt", lambda text: text.replace("32.0", ""), "bounding_boxes.txt: line 1 is '1 4.0 0.0  '"),
        ("bounding_boxes.txt", lambda text: text.replace("32.0", "0"), "a width or a height is not positive"),
        ("train_test_split.txt", lambda text: "", "train_test_split.txt: no lines, but a line holds: image_id"),
        ("train_test_split.txt", lambda text: text.replace(" 0", " 1"), "no image is left for a split of"),
        ("images/001.Bird/Bird_0001.jpg", None, "Bird_0001.jpg does not exist .1 of 3 images are missing"),
    ],
)
def test_an_odd_file_of_cub_is_named_with_the_layout(cub, name, change, message):
    file = cub / name
    if change is None:
        file.unlink()
    else:
        file.write_text(change(file.read_text()))
    with pytest.raises(ValueError, match=message) as error:
        read_cub(cub)
    assert "parts/part_locs.txt and images/<class>/<image>.jpg. Unpack the data set again" in str(error.value)


def test_celeba_leaves_out_small_faces_and_mafl(celeba):
    benchmark = read_celeba(celeba)
    assert benchmark.train.keys == ["000001.jpg", "000003.jpg"]  # 000002 is small, 000004 is of val, the rest is MAFL
    assert benchmark.fit.images.keys == ["000005.jpg", "000006.jpg"]
    assert benchmark.test.images.keys == ["000007.jpg", "000008.jpg"]
    assert benchmark.test.points[0].tolist() == [[16, 16], [40, 16], [28, 40], [20, 50], [40, 50]]


def test_aligned_faces_of_celeba_are_all_used(tmp_path):
    trees.write_celeba(tmp_path, aligned=True)
    benchmark = read_celeba(tmp_path)
    assert (benchmark.name, benchmark.train.keys) == ("celeba_aligned", ["000001.jpg", "000002.jpg", "000003.jpg"])


def test_scores_of_celeba_equal_scikit_learn_and_errors_are_relative_to_the_eyes(celeba):
    benchmark = read_celeba(celeba)
    scores = score(benchmark, labeling())
    true, predicted = [0, 1, 2, 3, 4] * 2, [0, 1, 2, 2, 2] * 2  # one part covers nose and mouth
    assert scores["nmi"] == pytest.approx(normalized_mutual_info_score(true, predicted))
    assert scores["ari"] == pytest.approx(adjusted_rand_score(true, predicted))
    # the parts do not move, so the mean of the two images of `fit` is predicted, x = (17 + 18) / 2 for the first eye
    expected = np.mean([[1.5 / 24, 0, 0, 0, 0], [0.5 / 23, 0, 0, 0, 0]])
    assert benchmark.fit.points[:, 0, 0].tolist() == [17, 18]
    assert benchmark.test.points[:, 0, 0].tolist() == [16, 17]
    assert scores["keypoint_error"] == pytest.approx(expected)


def test_celeba_without_the_lists_of_mafl_is_refused(celeba):
    (celeba / "MAFL/testing.txt").unlink()
    with pytest.raises(
        ValueError, match=r"MAFL/testing.txt does not exist \(nor MAFL_testing.txt\); expected img_celeba"
    ):
        read_celeba(celeba)


def test_part_imagenet_ood_follows_the_published_split_and_skips_images_without_parts(tmp_path):
    trees.write_part_imagenet_ood(tmp_path)
    benchmark = read_part_imagenet(tmp_path, "ood")
    assert benchmark.train.keys == ["n00000000/n00000000_0.JPEG", "n00000001/n00000001_1.JPEG"]
    assert benchmark.test.images.keys == ["n00000001/n00000001_3.JPEG", "n00000000/n00000000_4.JPEG"]
    mask = benchmark.test.mask(0, 16)
    assert benchmark.test.num_classes == 4
    expected = np.zeros((16, 16))
    expected[:, :4], expected[:8, 4:8], expected[8:, 4:8] = 1, 2, 3
    np.testing.assert_array_equal(mask, expected)


def test_part_imagenet_seg_trains_on_train_and_val(tmp_path):
    trees.write_part_imagenet_seg(tmp_path)
    benchmark = read_part_imagenet(tmp_path, "seg")
    assert benchmark.train.keys == ["images/train/n00000001_train0.JPEG", "images/val/n00000001_val0.JPEG"]
    assert benchmark.test.images.keys == ["n00000001_test0.JPEG", "n00000001_test1.JPEG"]
    assert benchmark.train.image(0).shape == (32, 64, 3)


def test_labels_that_equal_the_parts_of_part_imagenet_are_perfect(tmp_path):
    trees.write_part_imagenet_ood(tmp_path)
    scores = score(read_part_imagenet(tmp_path, "ood"), labeling())
    assert scores == pytest.approx({"nmi": 1, "ari": 1, "nmi_object": 1, "ari_object": 1})


def test_scores_of_part_imagenet_equal_scikit_learn_on_all_pixels(tmp_path):
    trees.write_part_imagenet_ood(tmp_path)
    benchmark = read_part_imagenet(tmp_path, "ood")
    cells = torch.nn.functional.one_hot(torch.randint(4, (64,), generator=torch.Generator().manual_seed(0)), 4)
    scores = score(benchmark, labeling(lambda images: cells.float().T.expand(len(images), 4, 64)))
    maps = torch.nn.functional.interpolate(cells.float().T.reshape(1, 4, 8, 8), (SIDE, SIDE), mode="bilinear")
    predicted = maps[0].argmax(0).numpy().ravel()
    true = benchmark.test.mask(0, SIDE).ravel()
    inside = true > 0
    assert scores["nmi"] == pytest.approx(normalized_mutual_info_score(true, predicted))
    assert scores["nmi_object"] == pytest.approx(normalized_mutual_info_score(true[inside], predicted[inside]))
    assert scores["ari"] == pytest.approx(adjusted_rand_score([*true] * 2, [*predicted] * 2))
    assert scores["ari_object"] == pytest.approx(adjusted_rand_score([*true[inside]] * 2, [*predicted[inside]] * 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("categories"), "train.json: it has no list 'categories'"),
        (lambda content: content["images"][0].pop("width"), "train.json: an entry of images has no 'width'"),
        (lambda content: content["images"][0].update(file_name="x_1.JPEG"), "ood.txt: no line for x_1.JPEG"),
        (lambda content: content["annotations"][0].update(segmentation={"counts": ""}), "not a list of polygons"),
        (lambda content: content["annotations"][0].update(segmentation=[[1, 2, 3]]), "not a list of x and y"),
        (lambda content: content["annotations"][0].update(category_id=9), "the unknown category 9"),
    ],
)
def test_an_odd_annotation_of_part_imagenet_is_named(tmp_path, change, message):
    trees.write_part_imagenet_ood(tmp_path)
    content = json.loads((tmp_path / "train.json").read_text())
    change(content)
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        read_part_imagenet(tmp_path, "ood")
    assert "train/<synset>/<image>.JPEG of PartImageNet_OOD, and train_test_split_pimagenet_ood.txt" in str(error.value)
