"""Part metrics equal scikit-learn on raw labels, brute force, and results computed by hand."""

from itertools import permutations, product

import numpy as np
import pytest
from sklearn import metrics as reference

from semmae.data import patch_masks
from semmae.data.patch_masks import IGNORE
from semmae.evaluation import part_metrics
from semmae.evaluation.part_metrics import LEVELS, PartMetrics

GRID, CLASSES, LABELS = (3, 4), 4, 5


def mask(seed: int, height: int = 23, width: int = 31) -> np.ndarray:
    """Return a mask of blobs with ignored pixels, whose size is not a multiple of the grid."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, CLASSES, (5, 6)).astype(np.uint8)
    found = coarse[np.arange(height)[:, None] * 5 // height, np.arange(width) * 6 // width]
    found[rng.random(found.shape) < 0.1] = IGNORE
    return found


def upsampled(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the label of the patch that contains each pixel's center, by a loop."""
    rows = [int((y + 0.5) / height * GRID[0]) for y in range(height)]
    columns = [int((x + 0.5) / width * GRID[1]) for x in range(width)]
    return labels.reshape(GRID)[np.ix_(rows, columns)]


def images(seed: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return part maps that agree partly with their masks, and the masks."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        truth = mask(seed * 100 + i, 20 + i, 30 - i)
        labels = patch_masks.majority_labels(patch_masks.cell_counts(truth, grid=GRID, num_classes=CLASSES)) + 1
        labels = np.where((rng.random(12) < 0.4) | (labels >= LABELS), rng.integers(0, LABELS, 12), labels)
        made.append((labels, truth))
    return made


def raw(pairs: list, level: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return predicted and true labels of each image, without ignored ones."""
    lists = []
    for labels, truth in pairs:
        if level == "pixel":
            predicted, true = upsampled(labels, *truth.shape).ravel(), truth.ravel()
        else:
            predicted = labels
            true = patch_masks.majority_labels(patch_masks.cell_counts(truth, grid=GRID, num_classes=CLASSES))
        lists.append((predicted[true != IGNORE], true[true != IGNORE]))
    return lists


def score(train: list, val: list, *, parts: bool = True) -> dict:
    found = PartMetrics(LABELS, CLASSES, parts=parts)
    for labels, truth in train:
        found.update_train(labels, patch_masks.cell_counts(truth, grid=GRID, num_classes=CLASSES))
    for labels, truth in val:
        found.update_val(labels, patch_masks.cell_counts(truth, grid=GRID, num_classes=CLASSES))
    return found.compute()


@pytest.mark.parametrize("level", LEVELS)
def test_a_contingency_table_counts_raw_labels(level):
    ((labels, truth),) = images(1, 1)
    ((predicted, true),) = raw([(labels, truth)], level)
    expected = np.zeros((LABELS, CLASSES), int)
    np.add.at(expected, (predicted, true), 1)
    counts = patch_masks.cell_counts(truth, grid=GRID, num_classes=CLASSES)
    found = part_metrics.contingency(labels, counts, num_labels=LABELS, level=level)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_scikit_learn_on_raw_labels(level, seed):
    train, val = images(2 * seed, 6), images(2 * seed + 1, 6)
    found = score(train, val)[level]
    train_predicted, train_true = map(np.concatenate, zip(*raw(train, level), strict=True))
    predicted, true = map(np.concatenate, zip(*raw(val, level), strict=True))

    sets = [np.array(chosen) for chosen in product([False, True], repeat=LABELS)]
    foreground = max(sets, key=lambda chosen: reference.jaccard_score(train_true > 0, chosen[train_predicted]))
    ious = [reference.jaccard_score(t > 0, foreground[p]) for p, t in raw(val, level) if (t > 0).any()]
    merged = np.where(foreground[predicted], predicted, -1)
    inside = true > 0
    expected = {
        "fg_iou": np.mean(ious),
        "nmi_all": reference.normalized_mutual_info_score(true, merged),
        "ari_all": reference.adjusted_rand_score(true, merged),
        "nmi_fg": reference.normalized_mutual_info_score(true[inside], predicted[inside]),
        "ari_fg": reference.adjusted_rand_score(true[inside], predicted[inside]),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)

    def iou(predicted: np.ndarray, true: np.ndarray, label: int, part: int) -> float:
        return ((predicted == label) & (true == part)).sum() / ((predicted == label) | (true == part)).sum()

    best = max(  # one label per true label, by trying all
        permutations(range(LABELS), CLASSES),
        key=lambda chosen: sum(iou(train_predicted, train_true, label, part) for part, label in enumerate(chosen)),
    )
    assert found["miou"] == pytest.approx(np.mean([iou(predicted, true, best[p], p) for p in range(1, CLASSES)]))


@pytest.mark.parametrize("level", LEVELS)
def test_the_names_of_the_labels_do_not_matter(level):
    train, val = images(3, 4), images(4, 4)
    names = np.array([3, 0, 4, 1, 2])
    renamed = [[(names[labels], truth) for labels, truth in split] for split in (train, val)]
    assert score(*renamed)[level] == pytest.approx(score(train, val)[level])


def test_perfect_labels_score_1_per_patch_and_are_an_upper_bound_per_pixel():
    def perfect_maps(pairs: list) -> list:
        cells = [patch_masks.cell_counts(truth, grid=GRID, num_classes=CLASSES) for _, truth in pairs]
        return [(patch_masks.majority_labels(c), truth) for c, (_, truth) in zip(cells, pairs, strict=True)]

    train, val = images(5, 5), images(6, 5)
    perfect, other = score(perfect_maps(train), perfect_maps(val)), score(train, val)
    for level in LEVELS:
        assert perfect[level].pop("used") < 1  # there is one label more than true labels
    assert perfect["patch"] == pytest.approx(dict.fromkeys(perfect["patch"], 1.0))
    assert (
        perfect["pixel"].pop("fg_iou") < 1
    )  # not a strict bound: if half of all patches are mixed, labeling all as foreground has a higher IoU
    assert all(other["pixel"][name] < value < 1 for name, value in perfect["pixel"].items())


def test_metrics_of_parts_are_left_out_for_masks_without_parts():
    truth = np.zeros((4, 4), np.uint8)
    truth[:, 2:] = 1
    found = score([(np.array([0, 0, 1, 1] * 3), truth)], [(np.array([0, 0, 2, 1] * 3), truth)], parts=False)["pixel"]
    assert set(found) == {"fg_iou", "nmi_all", "ari_all", "used", "background_share"}
    assert found["fg_iou"] == pytest.approx(0.5)  # label 2, never seen on train, is background


def test_a_consistent_label_is_the_same_part_on_val():
    train = np.array([[9, 5, 1], [9, 0, 3], [4, 0, 0]])  # labels 0, 1, 2 are parts 1, 2, and by default 1
    val = np.array([[7, 6, 2], [7, 1, 3], [7, 2, 0]])
    assert part_metrics.consistency(train, val) == pytest.approx((6 + 3 + 2) / 14)


def test_used_share_and_background_share():
    table = np.array([[60, 5], [25, 9], [0, 1], [0, 0]])
    assert part_metrics.used_share(table) == 0.75
    assert part_metrics.background_share(table) == pytest.approx(60 / 85)
    assert part_metrics.background_share(table * [0, 1]) == 1


def test_a_part_without_a_label_counts_as_missed():
    table = np.array([[9, 0, 1], [0, 8, 0]])
    assert part_metrics.match_labels(table).tolist() == [0, 1, -1]
    assert part_metrics.part_miou(table, part_metrics.match_labels(table)) == 0.5


def test_images_without_foreground_are_left_out_of_the_mean_and_a_set_without_any_is_refused():
    empty, half = np.zeros((4, 4), np.uint8), np.repeat(np.array([[0, 1]], np.uint8), 2, axis=1).repeat(4, axis=0)
    labels = np.array([0, 0, 1, 1] * 3)
    assert score([(labels, half)], [(labels, half), (labels, empty)])["pixel"]["fg_iou"] == 1.0
    with pytest.raises(ValueError, match="foreground"):
        score([(labels, half)], [(labels, empty)])


@pytest.mark.parametrize("table", [[[5]], [[1]], [[5, 0], [0, 7]], [[3, 4]], [[2, 2], [2, 2]], [[1, 0], [0, 1]]])
def test_degenerate_tables_are_scored_as_scikit_learn_scores_them(table):
    table = np.array(table)
    predicted, true = (np.repeat(axis.ravel(), table.ravel()) for axis in np.indices(table.shape))
    assert part_metrics.nmi(table) == pytest.approx(reference.normalized_mutual_info_score(true, predicted))
    assert part_metrics.ari(table) == pytest.approx(reference.adjusted_rand_score(true, predicted))


def test_foreground_labels_are_the_best_of_all_sets():
    rng = np.random.default_rng(0)
    for _ in range(50):
        table = rng.integers(0, 40, (6, 3))
        found = part_metrics.foreground_labels(table)

        def iou(chosen, table=table):
            return table[chosen, 1:].sum() / max(1, table[:, 1:].sum() + table[chosen, 0].sum())

        best = max(iou(np.array([bits >> k & 1 for k in range(6)], dtype=bool)) for bits in range(64))
        assert iou(found) == pytest.approx(best)
