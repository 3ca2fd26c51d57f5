"""Datasets of torchvision are sources by name, and downloads need `download: true`."""

import pickle
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torchvision import datasets

from semmae.data import decoding
from semmae.data.dataset import Reader
from semmae.sharding import shard_writer
from semmae.sharding.sources import torchvision
from semmae.sharding.sources.sources import TorchVision

WRITING = {"seed": 0, "short_side": None, "samples_per_shard": 8, "max_rejects": 0.0, "workers": 0}


def made(size: int, offset: int) -> dict:
    return {"size": size, "image_size": [3, 12, 10], "num_classes": 12, "random_offset": offset}


def fake(**changes) -> TorchVision:
    """FakeData: noise with random labels."""
    splits = {"train": made(20, 0), "val": made(6, 1000)}
    given = {"name": "FakeData", "path": None, "download": False, "val_fraction": None, "labels": True}
    return TorchVision(kind="torchvision", splits=splits, **given) if not changes else replace(fake(), **changes)


def test_images_and_labels_equal_those_of_torchvision(tmp_path):
    shard_writer.write(tmp_path / "set", {"fake": fake()}, **WRITING)
    for split, given in fake().splits.items():
        reader, theirs = Reader(tmp_path / "set", split), datasets.FakeData(**given)
        assert len(reader) == len(theirs)
        for i, key in enumerate(reader.keys):
            image, label = theirs[int(key.removeprefix(f"{split}_"))]
            assert np.array_equal(reader.image(i), np.asarray(image))
            assert reader.class_names[reader.labels[i]] == str(label)
    assert reader.class_names == sorted(reader.class_names, key=int)
    assert shard_writer.changed_sources(tmp_path / "set", {"fake": fake()}) == []
    assert shard_writer.changed_sources(
        tmp_path / "set", {"fake": fake(splits={"train": made(20, 1), "val": made(6, 1000)})}
    ) == ["fake"]


def test_a_worker_process_fetches_the_same():
    entry = fake().list_items(seed=0)[3]
    torchvision._open.cache_clear()
    assert pickle.loads(pickle.dumps(fake())).fetch(entry) == fake().fetch(entry)


def test_a_val_split_is_drawn_where_there_is_none():
    found = fake(splits={"train": made(40, 0)}, val_fraction=0.25, labels=False).list_items(seed=0)
    assert [entry.split for entry in found].count("val") == 10
    assert {entry.label for entry in found} == {None}


def test_folders_of_files_keep_their_bytes(tmp_path):
    for label in ("cat", "dog"):
        for i in range(2):
            path = tmp_path / f"zoo/{label}/{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 9, 3), 40 * i, np.uint8)).save(path)
    zoo = fake(name="ImageFolder", path=str(tmp_path / "zoo"), splits={"train": {}})
    shard_writer.write(tmp_path / "set", {"zoo": zoo}, **WRITING)
    reader = Reader(tmp_path / "set")
    assert reader.class_names == ["cat", "dog"]
    stored = {row["source"]: reader.encoded(i) for i, row in enumerate(rows(tmp_path / "set"))}
    assert stored["zoo/train/000003"] == (tmp_path / "zoo/dog/1.jpg").read_bytes()


def rows(folder) -> list[dict]:
    return pq.read_table(folder / "index.parquet").to_pylist()


def test_a_label_beyond_the_classes_is_a_reject(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.FakeData, "classes", ["a", "b", "c"], raising=False)
    shard_writer.write(
        tmp_path / "set", {"fake": fake(splits={"train": made(21, 0)})}, **(WRITING | {"max_rejects": 0.99})
    )
    rejected = pq.read_table(tmp_path / "set/rejected.parquet").to_pylist()
    assert rejected
    assert all(row["reason"].startswith("the label has no name: ") for row in rejected)
    assert all(row["reason"].endswith("names are for 0 to 2") for row in rejected)
    reader = Reader(tmp_path / "set")
    assert reader.class_names == ["a", "b", "c"]
    assert len(reader) + len(rejected) == 21


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "CIFAR11"}, r"torchvision has no dataset 'CIFAR11'; similar names: CIFAR10"),
        ({"name": "os"}, r"torchvision has no dataset 'os'"),
        ({"splits": {"train": {"sizes": 3}}}, r"FakeData takes no 'sizes' in splits; it takes image_size, num_classes"),
        ({"splits": {"train": {"download": True}}}, r"FakeData takes no 'download' in splits"),
        ({"name": "CIFAR10", "splits": {"train": {"train": True}}}, r"CIFAR10 reads files: set path to their folder"),
        ({"name": "CIFAR10", "splits": {"train": {"train": True}}, "path": "x"}, r"cannot be read from x .*not found"),
        ({"download": True}, r"torchvision cannot download FakeData; set download: false"),
    ],
)
def test_wrong_parameters_of_torchvision_are_one_sentence(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        fake(**changes).list_items(seed=0)
    assert list(tmp_path.iterdir()) == []


def test_targets_that_are_no_classes_are_refused(monkeypatch):
    monkeypatch.setattr(datasets.FakeData, "__getitem__", lambda self, i: (Image.new("L", (8, 8)), {"box": i}))
    with pytest.raises(ValueError, match=r"targets of torchvision's FakeData are not class numbers.*labels: false"):
        fake().list_items(seed=0)
    found = fake(labels=False).list_items(seed=0)
    assert decoding.to_rgb(fake().fetch(found[0])[0]).shape == (8, 8, 3)
