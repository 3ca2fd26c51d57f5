"""The image and its part map stay aligned; boxes follow torchvision's distribution; equal names give equal boxes."""

import math

import numpy as np
import pytest
from PIL import Image

from semmae.core.rng import numpy_generator
from semmae.data.crops import (
    FULL_IMAGE,
    Box,
    crop_image,
    crop_part_map,
    crop_part_maps,
    random_resized_crop,
    required_size,
    resize_box,
    snap_to_pixels,
)

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def boxes(count: int, aspect: float = 1.0, scale=SCALE, ratio=RATIO, flip: float = 0.5) -> list[Box]:
    rng = numpy_generator(0, "boxes")
    return [random_resized_crop(rng, aspect=aspect, scale=scale, ratio=ratio, flip=flip) for _ in range(count)]


def painted(part_map: np.ndarray, patch: int) -> np.ndarray:
    """The part map as an image: every cell `patch` x `patch` pixels of a gray of its own."""
    return np.repeat(np.kron(part_map, np.ones((patch, patch), np.uint8))[..., None], 3, axis=2)


@pytest.mark.parametrize("cells", [(14, 14), (7, 12), (20, 9)])
@pytest.mark.parametrize("grid", [(14, 14), (6, 6), (5, 9)])
def test_a_part_map_is_cropped_like_its_image(cells, grid):
    rng = np.random.default_rng(1)
    part_map = rng.integers(0, 256, cells, dtype=np.uint8)
    patch = 16
    image = Image.fromarray(painted(part_map, patch)[..., 0])
    fine = 31  # pixels per patch of the encoder; odd, so that a patch has a central pixel
    for box in boxes(40, aspect=cells[1] / cells[0]):
        top, left = box.top * image.height, box.left * image.width
        edges = (left, top, left + box.width * image.width, top + box.height * image.height)
        size = (grid[1] * fine, grid[0] * fine)
        pixels = np.asarray(image.transform(size, Image.Transform.EXTENT, edges, Image.Resampling.NEAREST))
        pixels = pixels[:, ::-1] if box.flip else pixels
        np.testing.assert_array_equal(pixels[fine // 2 :: fine, fine // 2 :: fine], crop_part_map(part_map, box, grid))


@pytest.mark.parametrize("cells", [(14, 14), (7, 12)])
@pytest.mark.parametrize("grid", [(7, 7), (5, 9)])
def test_a_batch_of_part_maps_is_cropped_like_single_maps(cells, grid):
    """Centers on borders included, which half the resolution makes."""
    part_maps = np.random.default_rng(1).integers(0, 256, (42, *cells), dtype=np.uint8)
    crops = [*boxes(40, aspect=cells[1] / cells[0]), FULL_IMAGE, FULL_IMAGE._replace(flip=True)]
    rows = np.random.default_rng(2).permutation(42)
    batch = crop_part_maps(part_maps, rows, np.array([box.span for box in crops]), grid).reshape(-1, *grid)
    for part_map, box, cropped in zip(part_maps[rows], crops, batch, strict=True):
        np.testing.assert_array_equal(cropped, crop_part_map(part_map, box, grid))


@pytest.mark.parametrize("cells", [(8, 8), (6, 9)])
def test_the_real_crop_shows_the_label_that_the_part_map_names(cells):
    """Bicubic sampling mixes colors at borders only: deep inside a cell the pixel is the label exactly."""
    part_map = np.random.default_rng(2).integers(0, 256, cells, dtype=np.uint8)
    image, grid, size = painted(part_map, 32), 7, 7 * 15
    agree = total = 0
    for box in boxes(60, aspect=cells[1] / cells[0], scale=(0.1, 0.5)):
        cropped = crop_image(image, box, size)[7::15, 7::15, 0]
        labels = crop_part_map(part_map, box, (grid, grid))
        centers = (np.arange(grid) + 0.5) / grid
        depth_y = np.abs((box.top + box.height * centers) * cells[0] % 1 - 0.5) < 0.3
        columns = centers[::-1] if box.flip else centers
        depth_x = np.abs((box.left + box.width * columns) * cells[1] % 1 - 0.5) < 0.3
        inside = depth_y[:, None] & depth_x
        agree += (np.abs(cropped.astype(int) - labels)[inside] <= 1).sum()
        total += inside.sum()
    assert total > 500
    assert agree == total


@pytest.mark.parametrize("shape", [(48, 48), (30, 50)])
def test_the_full_image_box_is_the_identity(shape):
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    np.testing.assert_array_equal(crop_image(image, FULL_IMAGE, 48), image)
    part_map = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(crop_part_map(part_map, FULL_IMAGE, shape), part_map)


def test_a_flip_mirrors_image_and_map():
    rng = np.random.default_rng(0)
    image, part_map = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8), rng.integers(0, 9, (10, 15), dtype=np.uint8)
    for box in boxes(10, aspect=1.5, flip=0.0):
        mirrored = box._replace(flip=True)
        np.testing.assert_array_equal(crop_image(image, mirrored, 24), crop_image(image, box, 24)[:, ::-1])
        labels = crop_part_map(part_map, box, (6, 6))
        np.testing.assert_array_equal(crop_part_map(part_map, mirrored, (6, 6)), labels[:, ::-1])


def test_a_center_on_a_border_belongs_to_the_later_cell():
    """Half the resolution puts every center on a border, where rounding must not decide."""
    part_map = np.arange(60, dtype=np.uint8).reshape(6, 10)
    np.testing.assert_array_equal(crop_part_map(part_map, FULL_IMAGE, (3, 5)), part_map[1::2, 1::2])


@pytest.mark.parametrize("aspect", [1.0, 1.5, 0.6])
def test_scale_and_ratio_are_uniform_within_their_limits(aspect):
    found = boxes(4000, aspect=aspect, scale=(0.1, 0.4))
    area = np.array([box.height * box.width for box in found])
    shape = np.log([box.width / box.height * aspect for box in found])
    for values, low, high in [(area, 0.1, 0.4), (shape, *np.log(RATIO))]:
        assert values.min() >= low - 1e-9
        assert values.max() <= high + 1e-9
        counts = np.histogram(values, bins=8, range=(low, high))[0]
        assert ((counts - 500) ** 2 / 500).sum() < 29.9  # chi-square, 7 degrees of freedom, p = 1e-4
    assert all(0 <= box.top <= 1 - box.height and 0 <= box.left <= 1 - box.width for box in found)
    assert abs(np.mean([box.flip for box in found]) - 0.5) < 0.04


@pytest.mark.parametrize("aspect", [1.0, 0.2, 6.0])
def test_the_fallback_is_the_largest_central_box_of_an_allowed_shape(aspect):
    box = boxes(1, aspect=aspect, scale=(1.0, 1.0), ratio=(0.7, 0.9))[0]  # the whole area fits no image but 0.7...0.9
    assert max(box.height, box.width) == 1
    assert 0.7 - 1e-9 <= box.width / box.height * aspect <= 0.9 + 1e-9
    assert math.isclose(2 * box.top + box.height, 1)
    assert math.isclose(2 * box.left + box.width, 1)


def test_a_box_is_a_function_of_seed_epoch_and_key():
    def box(seed, epoch, key):
        return random_resized_crop(numpy_generator(seed, epoch, key), aspect=1.0, scale=SCALE, ratio=RATIO, flip=0.5)

    assert box(0, 3, "cat") == box(0, 3, "cat")
    assert len({box(0, 3, "cat"), box(1, 3, "cat"), box(0, 4, "cat"), box(0, 3, "dog")}) == 4


def test_a_tiny_and_a_degenerate_crop_still_have_the_wanted_size():
    image = np.full((1, 3, 3), 77, np.uint8)
    for box in [*boxes(20, aspect=3.0), FULL_IMAGE]:
        assert (crop_image(image, box, 16) == 77).all()
    assert crop_image(image, FULL_IMAGE, 16).shape == (16, 16, 3)


@pytest.mark.parametrize("size", [(96, 96), (37, 160), (3, 2)])
def test_a_box_is_moved_to_pixel_edges(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for box in boxes(50, aspect=size[1] / size[0], flip=0.0):
        near = snap_to_pixels(box, size)
        top, left, height, width = (
            round(share * extent) for share, extent in zip(near[:4], (*size, *size), strict=True)
        )
        np.testing.assert_allclose(near[:4], np.array([top, left, height, width]) / (*size, *size), atol=1e-12)
        assert abs(near.top - box.top) * size[0] <= 0.5 + 1e-9
        assert abs(near.left + near.width - box.left - box.width) * size[1] <= max(0.5, 1 - box.width * size[1]) + 1e-9
        inside = image[top : top + height, left : left + width]
        np.testing.assert_array_equal(resize_box(image, near, (height, width)), inside.transpose(2, 0, 1))
        assert snap_to_pixels(near, size) == pytest.approx(near)


@pytest.mark.parametrize("size", [(10, 20), (39, 59), (80, 30), (60, 20), (1, 1)])
def test_a_shrinking_crop_agrees_with_pillow(size: tuple[int, int]):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    theirs = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(resize_box(image, FULL_IMAGE, size) - theirs.transpose(2, 0, 1)).max() <= 1


def test_an_image_is_large_enough_for_every_box():
    crops = [(box, (24, 32)) for box in boxes(20)]
    rows, columns = required_size(crops)
    assert all(rows * box.height >= 24 - 1e-9 and columns * box.width >= 32 - 1e-9 for box, _ in crops)
    assert any((rows - 1) * box.height < 24 for box, _ in crops)
    assert any((columns - 1) * box.width < 32 for box, _ in crops)
