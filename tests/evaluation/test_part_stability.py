"""The stability of labels equals what geometry says."""

import numpy as np
import pytest
import torch

from semmae.evaluation.part_evaluation import LabelerScores, PartBatch, PatchLabeler
from semmae.evaluation.part_stability import (
    VIEWS,
    ViewTransform,
    corresponding_patches,
    measure_stability,
    transform_images,
)
from semmae.models.teacher import Tokens

SIZE, PATCH = 96, 8
GRID = (12, 12)


def scores(label, num_labels: int) -> LabelerScores:
    """Wrap a labeler whose last label is the background."""
    labeler = PatchLabeler(num_labels, label, background=num_labels - 1)
    return LabelerScores(labeler, num_classes=2, grid=GRID, parts=False)


def batch_of(images: torch.Tensor) -> PartBatch:
    tokens = torch.zeros(len(images), 144, 1)
    heads = tokens[:, None, :, 0]
    return PartBatch(images, Tokens(tokens, tokens[:, 0], heads[:, 0], heads, tokens[:, 0], tokens), np.zeros((0,)))


def measure(label, num_labels: int, images: torch.Tensor) -> dict[str, float]:
    def encode_view(batch: PartBatch, views: torch.Tensor) -> PartBatch:
        return batch._replace(images=views)

    batches = [batch_of(part) for part in images.split(10)]
    return measure_stability({"x": scores(label, num_labels)}, batches, encode_view, grid=GRID)["x"]


def by_color(batch: PartBatch) -> np.ndarray:
    """Label a patch by its mean red: more or less than half."""
    red = batch.images[:, 0].float().unflatten(1, (12, 8)).unflatten(3, (12, 8)).mean((2, 4))
    return (red > 127).long().flatten(1).numpy()


def by_position(batch: PartBatch) -> np.ndarray:
    """Label a patch by its quarter of the image's height."""
    return np.tile(np.repeat(np.arange(4), 36), (len(batch.images), 1))


def test_labels_of_the_content_survive():
    images = torch.zeros(24, 3, SIZE, SIZE, dtype=torch.uint8)
    images[:12, 0, :, 48:] = 255  # the middle is where zooms and flips leave it
    images[12:, 0, 48:] = 255
    found = measure(by_color, 3, images)
    assert found["stable_flip"] == found["stable_zoom"] == 1
    assert found["stable_shift"] > 0.95  # shifts by parts of a patch split one row or column of patches


def test_shifts_by_whole_patches_keep_any_content(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    moves = [ViewTransform(down=8), ViewTransform(right=-16), ViewTransform(down=-24), ViewTransform(flip=True)]
    monkeypatch.setitem(VIEWS, "stable_shift", moves)
    assert measure(by_color, 3, images)["stable_shift"] == 1


def test_labels_of_the_position_survive_by_their_overlap():
    images = torch.zeros(24, 3, SIZE, SIZE, dtype=torch.uint8)
    found = measure(by_position, 5, images)
    assert found["stable_flip"] == 1  # a flip keeps the height
    kept = total = 0
    for shift in (8, 11, 14, 16, 21, 24):  # a shift down, up, left and right; up is the mirror image of down
        moves = [(row, (8 * row + 4 + shift) // 8) for row in range(12)]
        inside = [(row, to) for row, to in moves if 8 * row + 8 + shift <= SIZE and 8 * to >= shift]
        kept += sum(row // 3 == to // 3 for row, to in inside) + len(inside)
        total += 2 * len(inside)
    assert found["stable_shift"] == kept / total
    assert 0.4 < found["stable_zoom"] < 1


def test_an_integer_shift_and_a_flip_move_pixels_unchanged():
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    moved = transform_images(image.repeat(3, 1, 1, 1), [
        ViewTransform(down=3), ViewTransform(right=-5), ViewTransform(flip=True),
    ])  # fmt: skip
    assert torch.equal(moved[0, :, 3:], image[0, :, :-3])
    assert torch.equal(moved[1, :, :, :-5], image[0, :, :, 5:])
    assert torch.equal(moved[2], image[0].flip(2))


def test_a_zoom_keeps_the_center_and_scales_distances():
    ramp = torch.arange(0, 64, dtype=torch.uint8).repeat(1, 3, 64, 1)  # the value is the column
    for zoom in (0.8, 1.25):
        view = transform_images(ramp, [ViewTransform(zoom=zoom)])[0, 0, 0].float()
        columns = torch.arange(64) + 0.5 - 32
        expected = columns / zoom + 32 - 0.5
        inside = (columns.abs() / zoom) < 31
        assert ((view - expected)[inside].abs() <= 0.51).all()


@pytest.mark.parametrize("transform", [view for views in VIEWS.values() for view in views])
def test_moves_are_inverse_and_pairs_are_near(transform: ViewTransform):
    points = np.random.default_rng(0).uniform(-48, 48, (50, 2))
    np.testing.assert_allclose(transform.move_back(transform.move(points)), points, atol=1e-9)
    indices, counts = corresponding_patches(transform, GRID, SIZE)
    centers = (np.stack(np.mgrid[:12, :12], -1).reshape(-1, 2) + 0.5) * PATCH - SIZE / 2
    distance = np.abs(centers[indices] - transform.move(centers))[counts]
    assert counts.any()
    assert (distance <= PATCH / 2 + 1e-6).all()


def test_pairs_have_all_of_their_content_in_both_pictures():
    _, shifted = corresponding_patches(ViewTransform(down=16), GRID, SIZE)
    assert shifted.reshape(GRID).any(1).tolist() == [True] * 10 + [False] * 2
    _, odd = corresponding_patches(ViewTransform(right=11), GRID, SIZE)
    assert odd.reshape(GRID).any(0).tolist() == [False] + [True] * 9 + [False] * 2
    _, larger = corresponding_patches(ViewTransform(zoom=1.25), GRID, SIZE)
    assert larger.reshape(GRID).any(1).tolist() == [False] * 2 + [True] * 8 + [False] * 2
    indices, flipped = corresponding_patches(ViewTransform(flip=True), GRID, SIZE)
    assert flipped.all()
    assert indices.reshape(GRID)[0].tolist() == list(range(12))[::-1]


def test_background_is_not_measured():
    images = torch.zeros(6, 3, SIZE, SIZE, dtype=torch.uint8)
    generator = np.random.default_rng(0)

    def noisy_background(batch: PartBatch) -> np.ndarray:
        return np.where(by_position(batch) < 2, 3, generator.integers(0, 2, (len(batch.images), 144)))

    found = measure(noisy_background, 4, images)  # label 3, the upper half, is the background
    assert all(0.3 < value < 0.7 for value in found.values())
    nothing = measure(lambda batch: np.full((len(batch.images), 144), 3), 4, images)
    assert nothing == dict.fromkeys(VIEWS, 0)
