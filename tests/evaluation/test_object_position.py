"""The share of labels that the position on the object explains, for labels whose share is known."""

import numpy as np
import pytest

from semmae.evaluation.object_position import PositionTable, cross_entropies, object_cells

GRID = (20, 20)
EVERYWHERE = np.ones(400, bool)


def blob(rng: np.random.Generator) -> np.ndarray:
    """Return a filled ellipse of random place and size."""
    top, left = rng.integers(6, 14, 2)
    y, x = np.mgrid[: GRID[0], : GRID[1]]
    return (((y - top) / rng.uniform(3, 6)) ** 2 + ((x - left) / rng.uniform(3, 6)) ** 2 < 1).ravel()


def place(labels_of, num_labels: int, images: int = 200) -> float:
    """Compute `place` of labels that a function draws for the patches of each blob."""
    rng, table = np.random.default_rng(0), PositionTable(num_labels, GRID)
    for _ in range(images):
        foreground = blob(rng)
        table.update(labels_of(foreground, rng), foreground)
    return table.compute()


def test_bands_of_the_object_are_explained_and_noise_is_not():
    bands = place(lambda blob, rng: object_cells(blob, GRID) // 6, 12)
    noise = place(lambda blob, rng: rng.integers(0, 6, 400), 6)
    assert bands > 0.99
    assert noise < 0.01


def test_a_mixture_is_explained_by_the_share_of_its_mutual_information():
    def mixed(blob: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        upper = object_cells(blob, GRID) // 36  # 0 or 1
        return np.where(rng.random(400) < 0.8, upper, 1 - upper)

    entropy = -(0.8 * np.log(0.8) + 0.2 * np.log(0.2))
    assert place(mixed, 2) == pytest.approx(1 - entropy / np.log(2), abs=0.01)


def test_a_place_in_the_image_explains_less_than_a_place_on_the_object():
    in_image = place(lambda blob, rng: np.mgrid[:20, :20][0].ravel() // 4, 5)
    assert 0.1 < in_image < 0.8


def test_one_label_has_nothing_to_explain():
    assert place(lambda blob, rng: np.full(400, 2), 8) == 0
    assert PositionTable(3, GRID).compute() == 0  # no image at all


def test_cells_follow_the_object_wherever_and_however_large_it_is():
    small, large = np.zeros(GRID, bool), np.zeros(GRID, bool)
    small[2:6, 3:9] = True
    large[4:20, 6:18] = True  # 16 x 12 patches in place of 4 x 6
    cells = object_cells(large.ravel(), GRID).reshape(GRID)
    assert (cells[large].reshape(16, 12) == cells[large].reshape(16, 12)[:, ::-1]).all()  # left as right
    assert np.unique(cells[large] // 6).tolist() == list(range(1, 11))  # heights within 1.7 deviations
    coarse = object_cells(small.ravel(), GRID).reshape(GRID)[small].reshape(4, 6)
    assert coarse[0, 0] // 6 == 12 - 1 - coarse[-1, -1] // 6
    shifted = object_cells(np.roll(small, (5, 7), (0, 1)).ravel(), GRID).reshape(GRID)
    assert (shifted[7:11, 10:16] == coarse).all()


def test_patches_outside_of_the_object_do_not_count():
    rng, tables = np.random.default_rng(0), [PositionTable(4, GRID) for _ in range(2)]
    for _ in range(20):
        foreground = blob(rng)
        labels = rng.integers(0, 4, 400)
        tables[0].update(labels, foreground)
        tables[1].update(np.where(foreground, labels, 255), foreground)
    assert tables[0].compute() == tables[1].compute()


def test_cross_entropies_of_the_own_table_are_its_entropies():
    table = 10**6 * np.array([[4, 0], [1, 3]])
    conditional, marginal = cross_entropies(table, table)
    expected = -(np.log(1 / 4) + 3 * np.log(3 / 4)) * 10**6
    assert conditional == pytest.approx(expected, rel=1e-4)
    assert marginal == pytest.approx(-(5 * np.log(5 / 8) + 3 * np.log(3 / 8)) * 10**6, rel=1e-4)


def test_both_halves_are_measured_with_the_table_of_the_other():
    table = PositionTable(2, (1, 2))
    for labels in ([0, 1], [1, 0]):  # halves that contradict each other
        table.update(np.array(labels), np.ones(2, bool))
    assert table.compute() == 0
