"""Samples are read by offset, epochs have a known order, and damage is reported with shard and key."""

import contextlib
import gc
import os
import pickle
import resource
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from semmae.core import process
from semmae.data import decoding
from semmae.data.dataset import Reader, verify_shards
from semmae.data.epoch_order import epoch_order
from semmae.data.loader import batches
from semmae.sharding.creatures import draw


def load(reader: Reader, index: int, poison: str = "") -> dict:
    if reader.keys[index] == poison:
        raise ValueError(f"{poison} is poisoned")
    image = reader.image(index)
    return {"image": image, "label": reader.labels[index], "key": reader.keys[index], "weight": np.float32(0.5)}


def test_images_masks_and_labels_equal_the_drawings(toy_dataset):
    reader = Reader(toy_dataset, "val", verify=True)
    assert len(reader) == 16
    assert reader.class_names == list(draw.SPECIES)
    assert reader.num_classes == len(draw.SPECIES)
    assert (reader.mask_kind, reader.mask_names) == ("parts", list(draw.PARTS))
    for i, key in enumerate(reader.keys):
        image, mask, label = draw.draw(0, key, 32)
        assert np.array_equal(reader.image(i), image)
        assert np.array_equal(reader.mask(i), mask)
        assert reader.labels[i] == label


def test_rows_count_the_samples_of_the_tar(toy_dataset):
    reader = Reader(toy_dataset)
    assert len(reader) == 56
    for shard in set(reader.shards):
        keys = [sample["__key__"] for sample in webdataset.WebDataset(str(toy_dataset / shard), shardshuffle=False)]
        here = [i for i in range(len(reader)) if reader.shards[i] == shard]
        assert [reader.keys[i] for i in here] == [keys[reader.rows_in_shard()[i]] for i in here]
        assert reader.encoded(here[0])[:4] == b"\x89PNG"


def test_a_view_and_a_pickled_copy_read_the_same(toy_dataset):
    reader = Reader(toy_dataset, "train")
    first = reader.image(5)  # opens a shard, which must not travel
    view = pickle.loads(pickle.dumps(reader.select(np.array([5, 3, 5]))))
    assert len(view) == 3
    assert view.keys == [reader.keys[5], reader.keys[3], reader.keys[5]]
    assert np.array_equal(view.image(0), first)
    assert np.array_equal(view.mask(1), reader.mask(3))
    assert view.labels.tolist() == reader.labels[[5, 3, 5]].tolist()
    assert view.rows_in_shard().tolist() == reader.rows_in_shard()[[5, 3, 5]].tolist()
    assert len(reader) == 40


@pytest.mark.parametrize("split", ["test", ""])
def test_an_unknown_split_is_refused_with_the_known_ones(toy_dataset, split):
    with pytest.raises(ValueError, match=f"no split '{split}'; its splits are: train, val"):
        Reader(toy_dataset, split)


@pytest.fixture
def three_files(toy_dataset: Path) -> Iterator[None]:
    """This process can open three files more."""
    Reader(toy_dataset, "train")  # the first time, Arrow opens files of its own
    gc.collect()  # closes files of other tests
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    taken: list[int] = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    for _ in range(3):
        os.close(taken.pop())
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for file in taken:
        os.close(file)


def test_too_many_open_shards_are_refused_until_the_limit_is_raised(toy_dataset, three_files):
    reader = Reader(toy_dataset, "train")
    with pytest.raises(
        ValueError, match=r"\d shard\(s\) are open, and the system allows no more files: raise `ulimit -n`"
    ):
        [reader.encoded(i) for i in range(len(reader))]
    process.raise_open_files_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert len([reader.encoded(i) for i in range(len(reader))]) == 40


def test_views_share_the_open_shards(toy_dataset, three_files):
    views = [Reader(toy_dataset, "train")]
    for _ in range(5):
        views.append(views[-1].select(np.array([0])).with_shuffle_shards(1))
        assert views[-1].encoded(0) == views[0].encoded(0)


def test_a_missing_dataset_is_refused_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(ValueError, match="dvc repro shards@nowhere"):
        Reader(tmp_path / "nowhere")


@pytest.fixture
def damaged(toy_dataset, tmp_path: Path) -> Path:
    """A copy of the toy dataset, to be damaged."""
    return shutil.copytree(toy_dataset, tmp_path / "toy")


def test_a_corrupt_image_names_shard_and_key(damaged):
    reader = Reader(damaged, "train")
    with open(damaged / reader.shards[7], "r+b") as file:
        file.seek(reader.samples.image_range[7, 0])
        file.write(b"garbage")
    with pytest.raises(ValueError, match=f"{reader.shards[7]}, sample {reader.keys[7]}: not a readable image"):
        reader.image(7)
    with pytest.raises(ValueError, match=f"{reader.shards[7]} is damaged"):
        Reader(damaged, "train", verify=True)


@pytest.mark.parametrize("damage", ["bit", "cut", "missing"])
def test_verification_finds_any_damage(damaged, damage):
    verify_shards(damaged)
    path = damaged / "train-000002.tar"
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        data[1000] ^= 1
        path.write_bytes(data if damage == "bit" else data[:-512])
    with pytest.raises(ValueError, match=r"train-000002.tar is .*dvc checkout --force shards@toy"):
        verify_shards(damaged)


def test_verification_finds_any_flipped_bit_of_the_index(damaged):
    index = damaged / "index.parquet"
    original = index.read_bytes()
    for position in range(0, len(original), len(original) // 50):
        data = bytearray(original)
        data[position] ^= 1
        index.write_bytes(data)
        with pytest.raises(ValueError, match=r"index.parquet is damaged: .*dvc checkout --force shards@toy"):
            verify_shards(damaged)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_keep_the_order_and_the_types(toy_dataset, workers):
    reader = Reader(toy_dataset, "train")
    ids = epoch_order(len(reader), seed=0, epoch=0)[:37]
    before = torch.get_rng_state()
    read = list(batches(reader, ids, load, batch_size=10, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(batch["key"]) for batch in read] == [10, 10, 10, 7]
    assert [key for batch in read for key in batch["key"]] == [reader.keys[i] for i in ids]
    labels = torch.cat([batch["label"] for batch in read])
    assert labels.dtype == torch.int64
    assert labels.tolist() == reader.labels[ids].tolist()
    assert (read[0]["image"].dtype, tuple(read[0]["image"].shape)) == (torch.uint8, (10, 32, 32, 3))
    assert np.array_equal(read[3]["image"][6].numpy(), reader.image(ids[36]))
    assert read[0]["weight"].dtype == torch.float32


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_sample_arrives_unchanged(toy_dataset, workers):
    reader = Reader(toy_dataset, "train")
    poisoned = partial(load, poison=reader.keys[11])
    with pytest.raises(ValueError, match=f"^{reader.keys[11]} is poisoned$"):
        list(batches(reader, np.arange(20), poisoned, batch_size=4, workers=workers))


def test_samples_without_mask_or_label(tmp_path):
    from semmae.sharding import shard_writer
    from semmae.sharding.sources.sources import Tree

    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/1.png").write_bytes(decoding.encode_png(np.zeros((4, 5, 3), np.uint8)))
    source = Tree(kind="folder", path=str(tmp_path / "flat"), splits=None, val_fraction=None, labels=False, masks=None)
    shard_writer.write(
        tmp_path / "set", {"flat": source}, seed=0, short_side=None, samples_per_shard=9, max_rejects=0.0, workers=0
    )
    reader = Reader(tmp_path / "set", "train")
    assert reader.labels.tolist() == [-1]
    assert reader.mask(0) is None
    assert (reader.num_classes, reader.mask_kind) == (0, None)
