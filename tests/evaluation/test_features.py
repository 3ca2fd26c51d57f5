"""Every sample once and in order, resumed extraction, seeded random views, pooling."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semmae.data.dataset import Reader
from semmae.evaluation import features
from semmae.evaluation.views import CenterView
from semmae.models import vit
from tests.data.readers import sample_table

CPU = torch.device("cpu")
CONFIG = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


class Pictures(Reader):
    """Smooth images with these shapes."""

    def __init__(self, shapes: list[tuple[int, int]]) -> None:
        self.shapes = shapes
        self.samples = sample_table([f"picture{i}" for i in range(len(shapes))])

    def size(self, index: int) -> tuple[int, int]:
        return self.shapes[index]

    def image(self, index: int, *, at_least: tuple[int, int] = (0, 0)) -> np.ndarray:
        height, width = self.shapes[index]
        noise = np.random.default_rng(index).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        return np.array(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def mean_colors(images: torch.Tensor) -> torch.Tensor:
    return images.float().mean((2, 3))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_extract_encodes_every_sample_once_in_order(toy_dataset, batch_size, workers):
    reader = Reader(toy_dataset, "train")
    found = features.extract(mean_colors, reader, img_size=16, batch_size=batch_size, workers=workers)
    view = CenterView(16)
    expected = [view(reader, i)["image"].reshape(3, -1).mean(1) for i in range(len(reader))]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=1e-5)


def test_features_are_in_a_file_without_a_name(toy_dataset, state_root):
    found = features.extract(mean_colors, Reader(toy_dataset, "val"), img_size=16, batch_size=5, workers=0)
    assert mapped(found).startswith(f"{state_root}/scratch/")
    assert not list((state_root / "scratch").iterdir())  # the file has no name


def mapped(tensor: torch.Tensor) -> str:
    """Return the file that a tensor is mapped from; empty for none."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, inode, name = (line + " ").split(" ", 5)
        first, last = (int(address, 16) for address in addresses.split("-"))
        if first <= tensor.data_ptr() < last:
            return name.strip() if inode != "0" else ""
    raise AssertionError("not mapped at all")


@pytest.mark.parametrize("batches", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("torn", [0, 7])
def test_a_resumed_extraction_uses_the_same_batches_and_ends_with_the_same_bits(tmp_path, batches, torn):
    reader, sizes = Pictures([(20, 30)] * 5), []

    def encode(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return mean_colors(images) + len(images)  # the result depends on the batch size, as rounding does

    options = {"img_size": 8, "batch_size": 3, "workers": 0, "views": 2, "seed": 1}
    whole = features.extract(encode, reader, **options, file=tmp_path / "whole")
    rows = [0, 3, 5, 8, 10][batches]
    (tmp_path / "killed").write_bytes((tmp_path / "whole").read_bytes()[: rows * 3 * 4 + torn])
    sizes.clear()
    assert torch.equal(features.extract(encode, reader, **options, file=tmp_path / "killed"), whole)
    assert sizes == [1, *[3, 2, 3, 2][batches:]]  # the first call determines the width
    assert (tmp_path / "killed").stat().st_size == 10 * 3 * 4


def test_random_views_are_a_function_of_seed_view_and_key():
    reader = Pictures([(40, 60), (50, 50), (40, 60)])
    options = {"img_size": 16, "workers": 0, "views": 2}
    found = features.extract(mean_colors, reader, batch_size=2, seed=1, **options)
    assert found.shape == (2, 3, 3)
    assert torch.equal(found, features.extract(mean_colors, reader, batch_size=3, seed=1, **options))
    more = features.extract(mean_colors, reader, batch_size=2, seed=1, **options | {"views": 3})
    assert torch.equal(found, more[:2])  # a view does not depend on how many there are
    assert not torch.isclose(found[0], found[1]).any()
    other = features.extract(mean_colors, reader, batch_size=2, seed=2, **options)
    assert not torch.isclose(found, other).any()


@pytest.mark.parametrize(("pool", "width"), [("class", 32), ("patch_mean", 32), ("both", 64)])
def test_pools_are_class_token_mean_of_patches_or_both(pool, width):
    network = vit.build(CONFIG).eval()
    images = torch.randint(256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        found = features.build_feature_encoder(network, pool=pool, device=CPU)(images)
        tokens = network.forward_features(vit.normalize(images))
    parts = {"class": [tokens[:, 0]], "patch_mean": [tokens[:, 1:].mean(1)]}
    expected = parts["class"] + parts["patch_mean"] if pool == "both" else parts[pool]
    assert found.shape == (3, width)
    torch.testing.assert_close(found, torch.cat(expected, dim=1), rtol=1e-4, atol=1e-5)


def test_features_that_are_not_finite_raise_an_error_that_names_the_image():
    reader = Pictures([(20, 20)] * 5)

    def encode(images: torch.Tensor) -> torch.Tensor:
        found = mean_colors(images)
        found[-1, 0] = float("nan")
        return found

    with pytest.raises(ValueError, match="picture2 are not finite"):
        features.extract(encode, reader, img_size=8, batch_size=3, workers=0)
