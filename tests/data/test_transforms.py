"""What a step sees: drawn by name, joined to its part map, colored as promised."""

import numpy as np
import pytest
import torch

from semmae.data import transforms
from semmae.data.dataset import Reader
from semmae.data.loader import batches
from semmae.data.transforms import ColorJitter, Crop, FullImage, MultiCrop, OneCrop
from semmae.parts.part_maps import PartMaps

CROP = Crop(scale=(0.3, 1.0), ratio=(0.75, 1.3333), flip=0.5)
STILL = ColorJitter(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, gray=0.0)


@pytest.fixture
def reader(toy_dataset) -> Reader:
    return Reader(toy_dataset, "train")


def painted(reader: Reader) -> PartMaps:
    """Part maps by color: 1 where the red of a patch is above the median."""
    cells = np.stack([reader.image(i)[..., 0].reshape(4, 8, 4, 8).mean((1, 3)).reshape(-1) for i in range(len(reader))])
    labels = (cells > np.median(cells)).astype(np.uint8)
    return PartMaps(reader.keys, {"part_map": labels}, {"grid": [4, 4], "num_parts": 2, "background": None}, 0)


def test_a_crop_depends_on_seed_epoch_and_key_alone(reader):
    load = OneCrop(0, CROP, [32] * 3)
    first = load(reader, 3, 1)["image"]
    assert np.array_equal(first, load(reader, 3, 1)["image"])
    assert np.array_equal(first, load(reader.select(np.array([5, 3])), 1, 1)["image"])
    assert not np.array_equal(first, load(reader, 3, 2)["image"])
    assert not np.array_equal(first, OneCrop(1, CROP, [32] * 3)(reader, 3, 1)["image"])


def test_the_part_map_is_cropped_with_the_image(reader):
    maps = painted(reader)
    whole = Crop(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1.0)
    load, order = OneCrop(0, whole, [32] * 2), np.array([3, 7, 0, 5])
    (batch,) = batches(reader, order, lambda reader, i: load(reader, i, 0), batch_size=4, workers=0)
    cropped = maps.crops("part_map", batch["index"], batch["span"], (4, 4)).numpy()
    assert np.array_equal(cropped.reshape(4, 4, 4), maps.channels["part_map"][order].reshape(4, 4, 4)[:, :, ::-1])
    assert np.array_equal(batch["image"][1], reader.image(7)[:, ::-1].transpose(2, 0, 1))


def test_full_images_are_resized_not_cropped(reader):
    assert np.array_equal(FullImage(32, 0, 0.0)(reader, 3)["image"], reader.image(3).transpose(2, 0, 1))
    flips = [FullImage(32, 0, 0.5)(reader, i, e)["image"] for i in range(5) for e in range(6)]
    kept = [np.array_equal(f, reader.image(i // 6).transpose(2, 0, 1)) for i, f in enumerate(flips)]
    assert 5 < sum(kept) < 25


def test_multi_crop_has_two_global_views_and_colors_of_their_own(reader):
    load = MultiCrop(
        0, CROP, Crop(scale=(0.05, 0.2), ratio=(1.0, 1.0), flip=0.5), 3, 32, 16, ColorJitter(0.4, 0.4, 0.2, 0.1, 0.2)
    )
    sample = load(reader, 0, 0)
    assert sample["global"].shape == (2, 3, 32, 32)
    assert sample["local"].shape == (3, 3, 16, 16)
    assert len(np.unique(sample["color"].reshape(5, -1), axis=0)) == 5
    assert "local" not in MultiCrop(0, CROP, CROP, 0, 32, 16, STILL)(reader, 0, 0)


def test_no_change_of_color_is_the_identity():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    matrix = torch.from_numpy(transforms.color_matrix(np.random.default_rng(0), STILL)).expand(2, 3, 4)
    assert torch.equal(transforms.apply_color_matrix(images, matrix), images)


def test_without_color_the_channels_are_equal_and_gray_stays_gray():
    images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    gray = torch.from_numpy(transforms.color_matrix(np.random.default_rng(0), ColorJitter(0.0, 0.0, 0.0, 0.0, 1.0)))
    out = transforms.apply_color_matrix(images, gray[None]).int()
    assert (out.amax(1) - out.amin(1)).max() == 0
    luma = (images.double() * torch.tensor(transforms.LUMA).view(3, 1, 1)).sum(1).round().int()
    assert (out[:, 0] - luma).abs().max() <= 1
    turned = torch.from_numpy(transforms.color_matrix(np.random.default_rng(0), ColorJitter(0.0, 0.0, 0.5, 0.5, 0.0)))
    flat = torch.full((1, 3, 4, 4), 90, dtype=torch.uint8)
    assert (transforms.apply_color_matrix(flat, turned[None]).int() - 90).abs().max() <= 1
