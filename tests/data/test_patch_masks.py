"""Masks at the resolution of patches: the counts of labels in each patch, and the majority label."""

import numpy as np
import pytest

from semmae.data.dataset import Reader
from semmae.data.decoding import IGNORE
from semmae.data.patch_masks import WholeView, cell_counts, majority_labels

GRID, CLASSES = (3, 4), 4


def test_cell_counts_are_the_histograms_of_the_cells():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, CLASSES, (6, 8)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = IGNORE
    found = cell_counts(truth, grid=GRID, num_classes=CLASSES).reshape(*GRID, CLASSES)
    for row in range(3):
        for column in range(4):
            cell = truth[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert found[row, column].tolist() == [(cell == label).sum() for label in range(CLASSES)]


@pytest.mark.parametrize(
    ("pixels", "label"),
    [
        ([0, 0, 0, 1], 0),
        ([3, 3, 1, 0], 3),
        ([255, 255, 255, 2], 2),
        ([255, 255, 255, 255], IGNORE),
        ([0, 0, 1, 1], 0),  # two equals: the lower one
        ([3, 3, 1, 1], 1),
        ([0, 0, 0, 1, 1, 2, 2, 255], 1),  # mostly foreground, though no part has as many pixels as the background
    ],
)
def test_a_cell_takes_the_majority_of_its_labeled_pixels(pixels, label):
    counts = cell_counts(np.array([pixels], np.uint8), grid=(1, 1), num_classes=CLASSES)
    assert majority_labels(counts).tolist() == [label]
    assert majority_labels(np.stack([counts, counts])).tolist() == [[label], [label]]


def test_a_label_without_a_name_is_refused():
    with pytest.raises(ValueError, match="label 7"):
        cell_counts(np.full((4, 4), 7, np.uint8), grid=GRID, num_classes=CLASSES)


def test_the_whole_view_does_not_crop_and_counts_mask_labels(toy_dataset):
    reader = Reader(toy_dataset, "val")
    sample = WholeView(32, (4, 4), len(reader.mask_names))(reader, 3)
    assert np.array_equal(sample["image"], reader.image(3).transpose(2, 0, 1))
    mask = reader.mask(3)
    expected = [np.bincount(mask[8 * (i // 4) :, 8 * (i % 4) :][:8, :8].ravel(), minlength=9) for i in range(16)]
    assert np.array_equal(sample["counts"], np.stack(expected))
