"""Every sample once and in order, the evaluation view against resize and center crop, seeded random views, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semmae.data.dataset import Reader
from semmae.evaluation import features
from semmae.evaluation.features import CenterView, RandomView, WholeView
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
def test_extract_sees_every_sample_once_in_order(toy_dataset, batch_size, workers):
    reader = Reader(toy_dataset, "train")
    found = features.extract(mean_colors, reader, img_size=16, batch_size=batch_size, workers=workers)
    view = CenterView(16)
    expected = [view(reader, i)["image"].reshape(3, -1).mean(1) for i in range(len(reader))]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (120, 48)])
def test_the_evaluation_view_is_a_resize_of_the_short_side_and_a_center_crop(shape):
    reader = Pictures([shape])
    size = shape[1] * 256 // min(shape), shape[0] * 256 // min(shape)
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    resized = Image.fromarray(reader.image(0)).resize(size, Image.Resampling.BICUBIC)
    expected = np.array(resized.crop((left, top, left + 224, top + 224)))
    found = CenterView(224)(reader, 0)["image"].transpose(1, 2, 0)
    assert np.abs(found.astype(int) - expected)[4:-4, 4:-4].max() <= 1  # at its edges a crop sees no neighbors


def test_features_lie_in_a_file_and_not_in_memory(toy_dataset, state_root):
    found = features.extract(mean_colors, Reader(toy_dataset, "val"), img_size=16, batch_size=5, workers=0)
    assert mapped(found).startswith(f"{state_root}/scratch/")
    assert not list((state_root / "scratch").iterdir())  # it has no name that could outlive its reader


def mapped(tensor: torch.Tensor) -> str:
    """The file that a tensor's memory is mapped from; empty: there is none."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, inode, name = (line + " ").split(" ", 5)
        first, last = (int(address, 16) for address in addresses.split("-"))
        if first <= tensor.data_ptr() < last:
            return name.strip() if inode != "0" else ""
    raise AssertionError("not mapped at all")


@pytest.mark.parametrize("batches", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("torn", [0, 7])
def test_a_killed_extraction_goes_on_with_the_same_batches_and_ends_with_the_same_bits(tmp_path, batches, torn):
    reader, sizes = Pictures([(20, 30)] * 5), []

    def encode(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return mean_colors(images) + len(images)  # as if a batch of another size rounded differently

    sight = {"img_size": 8, "batch_size": 3, "workers": 0, "views": 2, "seed": 1}
    whole = features.extract(encode, reader, **sight, file=tmp_path / "whole")
    rows = [0, 3, 5, 8, 10][batches]
    (tmp_path / "killed").write_bytes((tmp_path / "whole").read_bytes()[: rows * 3 * 4 + torn])
    sizes.clear()
    assert torch.equal(features.extract(encode, reader, **sight, file=tmp_path / "killed"), whole)
    assert sizes == [1, *[3, 2, 3, 2][batches:]]  # the first asks for the width
    assert (tmp_path / "killed").stat().st_size == 10 * 3 * 4


def test_random_views_depend_on_seed_view_and_key_alone():
    reader = Pictures([(40, 60), (50, 50), (40, 60)])
    sight = {"img_size": 16, "workers": 0, "views": 2}
    found = features.extract(mean_colors, reader, batch_size=2, seed=1, **sight)
    assert found.shape == (2, 3, 3)
    assert torch.equal(found, features.extract(mean_colors, reader, batch_size=3, seed=1, **sight))
    more = features.extract(mean_colors, reader, batch_size=2, seed=1, **sight | {"views": 3})
    assert torch.equal(found, more[:2])  # a view does not depend on how many there are
    assert not torch.isclose(found[0], found[1]).any()
    other = features.extract(mean_colors, reader, batch_size=2, seed=2, **sight)
    assert not torch.isclose(found, other).any()


def test_random_views_cover_little_or_nearly_all_of_an_image():
    reader = Pictures([(60, 90)])
    ramp = np.broadcast_to(np.linspace(0, 255, 90).astype(np.uint8)[None, :, None], (60, 90, 3))
    reader.image = lambda index, **_: np.ascontiguousarray(ramp)
    views = [RandomView(16, 0, view)(reader, 0)["image"][0].astype(int) for view in range(100)]
    spread = [abs(view[:, -1].mean() - view[:, 0].mean()) / 255 for view in views]
    assert min(spread) < 0.35
    assert max(spread) > 0.75
    assert 0.3 < np.mean([view[0, 0] > view[0, -1] for view in views]) < 0.7  # flipped


def test_the_whole_view_keeps_the_borders_and_counts_the_mask(toy_dataset):
    reader = Reader(toy_dataset, "val")
    sample = WholeView(32, (4, 4), len(reader.mask_names))(reader, 3)
    assert np.array_equal(sample["image"], reader.image(3).transpose(2, 0, 1))
    mask = reader.mask(3)
    expected = [np.bincount(mask[8 * (i // 4) :, 8 * (i % 4) :][:8, :8].ravel(), minlength=9) for i in range(16)]
    assert np.array_equal(sample["counts"], np.stack(expected))


@pytest.mark.parametrize(("pool", "width"), [("class", 32), ("patch_mean", 32), ("both", 64)])
def test_pooling(pool, width):
    network = vit.build(CONFIG).eval()
    images = torch.randint(256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        found = features.pooled(network, pool=pool, device=CPU)(images)
        tokens = network.forward_features(vit.normalize(images))
    parts = {"class": [tokens[:, 0]], "patch_mean": [tokens[:, 1:].mean(1)]}
    expected = parts["class"] + parts["patch_mean"] if pool == "both" else parts[pool]
    assert found.shape == (3, width)
    torch.testing.assert_close(found, torch.cat(expected, dim=1), rtol=1e-4, atol=1e-5)


def test_a_broken_encoder_is_named_with_the_image_it_broke_on():
    reader = Pictures([(20, 20)] * 5)

    def encode(images: torch.Tensor) -> torch.Tensor:
        found = mean_colors(images)
        found[-1, 0] = float("nan")
        return found

    with pytest.raises(ValueError, match="picture2 are not finite"):
        features.extract(encode, reader, img_size=8, batch_size=3, workers=0)


class Split:
    """What the checks of a dataset look at."""

    def __init__(self, labels: list[int], masks: list[bool], kind: str | None = "parts") -> None:
        self.labels, self.masks, self.mask_kind = np.array(labels), np.array(masks), kind
        self.class_names = ["ant", "bee", "cat"]
        self.num_classes = 3

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_mask(self) -> np.ndarray:
        return self.masks

    def select(self, ids: np.ndarray) -> "Split":
        return Split(self.labels[ids].tolist(), self.masks[ids].tolist(), self.mask_kind)


@pytest.fixture
def splits(monkeypatch):
    """Replace the dataset by these splits."""

    def use(**by_name: Split) -> None:
        monkeypatch.setattr(features, "Reader", lambda dataset, split: by_name[split])
        monkeypatch.setattr(features, "verify_shards", lambda dataset: None)

    return use


def test_labeled_splits_leave_out_what_has_no_label(splits, tmp_path):
    splits(train=Split([0, -1, 1], [False] * 3), val=Split([1, -1], [False] * 2))
    train, val = features.labeled_splits(tmp_path)
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 1], [1])


@pytest.mark.parametrize(("train", "val", "split"), [([0, 1, 7], [1], "train"), ([0, 1], [1, 7], "val")])
def test_a_label_without_a_name_is_refused(splits, tmp_path, train: list[int], val: list[int], split: str):
    splits(train=Split(train, [False] * len(train)), val=Split(val, [False] * len(val)))
    with pytest.raises(ValueError, match=rf"{split} has the label 7, but shards\.json names 3 classes"):
        features.labeled_splits(tmp_path)


def test_masked_splits_leave_out_what_has_no_mask(splits, tmp_path):
    splits(train=Split([-1] * 3, [True, False, True]), val=Split([-1] * 2, [False, True]))
    assert [len(reader) for reader in features.masked_splits(tmp_path)] == [2, 1]


def test_a_class_of_val_that_train_lacks_is_refused_by_name(splits, tmp_path):
    splits(train=Split([0, 1], [False] * 2), val=Split([0, 2], [False] * 2))
    with pytest.raises(ValueError, match=r"train lacks \(cat\)"):
        features.labeled_splits(tmp_path)


def test_an_unlabeled_split_is_refused(splits, tmp_path):
    splits(train=Split([0, 1], [False] * 2), val=Split([-1, -1], [False] * 2))
    with pytest.raises(ValueError, match="no sample of val has labels"):
        features.labeled_splits(tmp_path)


@pytest.mark.parametrize(("kind", "masks", "message"), [("classes", True, "kind classes"), (None, False, "has masks")])
def test_masks_that_show_no_object_are_refused(splits, tmp_path, kind, masks, message):
    splits(train=Split([0], [masks], kind), val=Split([0], [masks], kind))
    with pytest.raises(ValueError, match=message):
        features.masked_splits(tmp_path)
