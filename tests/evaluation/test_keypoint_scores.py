"""The keypoint protocols equal scikit-learn, closed forms and results computed by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from semmae.evaluation.part_benchmarks.keypoint_scores import (
    KeypointRows,
    in_boxes,
    keypoint_error,
    labels_at,
    part_centers,
)


def rows(centers: np.ndarray, points: np.ndarray, scale: float = 1.0) -> KeypointRows:
    return KeypointRows(centers, points, np.ones(points.shape[:2], bool), np.full(len(centers), scale))


def test_the_center_of_a_part_is_the_mean_of_its_patches():
    labels = np.array([[0, 0, 1], [2, 1, 1]])
    centers = part_centers(labels, 4)
    expected = [[2 / 6, 0.25], [(2.5 + 1.5 + 2.5) / 9, (0.25 + 0.75 + 0.75) / 3], [1 / 6, 0.75], [np.nan, np.nan]]
    np.testing.assert_allclose(centers, expected)


def test_the_label_at_a_point_is_that_of_the_resized_maps_at_its_pixel():
    maps = torch.rand(5, 4, 6, generator=torch.Generator().manual_seed(0))
    resized = F.interpolate(maps[None], (40, 90), mode="bilinear", align_corners=False)[0].argmax(0).numpy()
    y, x = np.mgrid[:40, :90]
    points = np.stack([(x.ravel() + 0.5) / 90, (y.ravel() + 0.5) / 40], axis=1)
    assert (labels_at(maps, points) == resized.ravel()).mean() > 0.999  # rounding may break a tie differently


def test_a_point_outside_of_the_image_has_the_label_of_the_nearest_patch():
    maps = F.one_hot(torch.tensor([[0, 1], [2, 3]])).permute(2, 0, 1).float()
    assert labels_at(maps, np.array([[-0.2, 0.1], [1.3, 0.9]])).tolist() == [0, 3]


def test_points_in_boxes_are_fractions_of_the_box():
    points = np.array([[[12.0, 30.0], [20.0, 50.0]]])
    assert in_boxes(points, np.array([[10.0, 20.0, 20.0, 40.0]])).tolist() == [[[0.1, 0.25], [0.5, 0.75]]]


def test_keypoints_that_are_linear_in_the_centers_have_no_error():
    rng = np.random.default_rng(0)
    fit, test = rng.random((30, 3, 2)), rng.random((10, 3, 2))
    matrix, shift = rng.random((6, 4)), rng.random(4)

    def points(centers: np.ndarray) -> np.ndarray:
        return (centers.reshape(-1, 6) @ matrix + shift).reshape(-1, 2, 2)

    assert keypoint_error(rows(fit, points(fit)), rows(test, points(test))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("missing", [np.nan, 0.5], ids=["without parts", "with parts that do not move"])
def test_centers_without_information_predict_the_mean_keypoint(missing):
    rng = np.random.default_rng(1)
    fit, test = rng.random((8, 3, 2)), rng.random((5, 3, 2))
    expected = np.linalg.norm(fit.mean(0) - test, axis=2).mean() / 0.5
    centers = np.full((8, 2, 2), missing)
    assert keypoint_error(rows(centers, fit), rows(centers[:5], test, 0.5)) == pytest.approx(expected)


def test_a_missing_part_counts_as_the_mean_of_its_centers():
    rng = np.random.default_rng(2)
    centers, points = rng.random((20, 2, 2)), rng.random((20, 1, 2))
    absent, filled = centers.copy(), centers.copy()
    absent[3, 1], filled[3, 1] = np.nan, np.delete(centers[:, 1], 3, axis=0).mean(0)
    expected = keypoint_error(rows(filled, points), rows(centers, points))
    assert keypoint_error(rows(absent, points), rows(centers, points)) == pytest.approx(expected)


def test_only_visible_keypoints_are_fitted_and_scored():
    rng = np.random.default_rng(3)
    centers, points = rng.random((12, 2, 2)), rng.random((12, 3, 2))
    visible = np.ones((12, 3), bool)
    visible[::2, 1] = False
    garbled = np.where(visible[:, :, None], points, 1e6)
    errors = [keypoint_error(*[KeypointRows(centers, p, visible, np.ones(12))] * 2) for p in (points, garbled)]
    assert errors[0] == errors[1]
    visible[:, 1] = False
    with pytest.raises(ValueError, match="keypoint 2 is not visible in any image"):
        keypoint_error(KeypointRows(centers, points, visible, np.ones(12)), rows(centers, points))
