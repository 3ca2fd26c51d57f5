"""A local folder is read by the datasets library as it reads one of the hub: images keep their bytes, labels names."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from semmae.data import decoding
from semmae.data.dataset import Reader
from semmae.sharding import shard_writer
from semmae.sharding.sources import huggingface
from semmae.sharding.sources.huggingface import ColumnMasks, Columns, HuggingFace
from semmae.sharding.sources.source_item import label_name

datasets = pytest.importorskip("datasets", reason="sources of kind hf need the datasets library")
WRITING = {"seed": 0, "short_side": None, "samples_per_shard": 8, "max_rejects": 0.0, "workers": 0}
NAMES = ["cat", "dog", "eel"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The library's own cache in a temporary folder, and no network."""
    root = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", root)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", root / "modules", raising=False)
    huggingface._load_dataset.cache_clear()
    huggingface._load_table.cache_clear()
    datasets.disable_progress_bars()


def encoded(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((12, 16, 3), value, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def outline(value: int) -> bytes:
    return decoding.encode_png(np.full((12, 16), value, np.uint8))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """12 + 6 images in Parquet, with class labels, masks and the animal that is seen."""
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "species": datasets.ClassLabel(names=NAMES),
            "animal": datasets.Value("int64"),
            "outline": datasets.Image(),
        }
    )
    for split, count in (("train", 12), ("validation", 6)):
        rows = {
            "picture": [{"bytes": encoded(10 * i), "path": None} for i in range(count)],
            "species": [i % 2 for i in range(count)],
            "animal": [i // 2 for i in range(count)],
            "outline": [{"bytes": outline(i % 2), "path": None} for i in range(count)],
        }
        (tmp_path / "pets").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / f"pets/{split}.parquet"))
    return tmp_path / "pets"


def source(path: Path, **changes) -> HuggingFace:
    given = {"splits": {"train": "train", "val": "validation"}, "columns": Columns("picture", "species")}
    given |= {"path": str(path), "hub": None, "val_fraction": None, "masks": None}
    return HuggingFace(kind="hf", **(given | changes))


def test_a_local_parquet_folder(pets, tmp_path):
    named = {"pets": source(pets, masks=ColumnMasks("foreground", ["background", "pet"], "outline"))}
    shard_writer.write(tmp_path / "set", named, **WRITING)
    for split, count in (("train", 12), ("val", 6)):
        reader = Reader(tmp_path / "set", split)
        assert len(reader) == count
        assert reader.class_names == NAMES
        for i, key in enumerate(reader.keys):
            number = int(key.removeprefix(f"{split}_"))
            assert reader.encoded(i) == encoded(10 * number)
            assert reader.labels[i] == number % 2
            assert (reader.mask(i) == number % 2).all()
    assert shard_writer.changed_sources(tmp_path / "set", named) == []


def test_a_local_folder_of_images(tmp_path):
    for label in ("cat", "dog"):
        for i in range(3):
            path = tmp_path / f"zoo/train/{label}/{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(50 * i))
    zoo = source(tmp_path / "zoo", splits={"train": "train"}, columns=Columns("image", "label"))
    shard_writer.write(tmp_path / "set", {"zoo": zoo}, **WRITING)
    reader = Reader(tmp_path / "set")
    assert reader.class_names == ["cat", "dog"]
    assert sorted(reader.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    assert {reader.encoded(i) for i in range(6)} == {encoded(0), encoded(50), encoded(100)}


def test_a_val_split_is_drawn_by_groups(pets):
    found = source(pets, splits={"train": "train"}, val_fraction=0.5, group="animal").list_items(seed=0)
    side = {}
    for entry in found:
        assert side.setdefault(entry.group, entry.split) == entry.split
    assert sorted(entry.split for entry in found) == ["train"] * 6 + ["val"] * 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": Columns("image", "species")}, "has no column 'image'; it has picture, species, animal, outline"),
        ({"columns": Columns("picture", "kind")}, "has no column 'kind'"),
        ({"columns": Columns("animal", None)}, "holds no images in column 'animal'"),
        ({"splits": {"train": "training"}}, "has no split 'training'; it has train, validation"),
        ({"path": "nowhere"}, "nowhere is not a folder"),
    ],
)
def test_missing_data_are_named(changes, message, pets):
    with pytest.raises(ValueError, match=message):
        replace(source(pets), **changes).list_items(seed=0)


def test_odd_rows_are_rejects(tmp_path):
    (tmp_path / "odd").mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = {
        "image": [{"bytes": encoded(0), "path": None}, None, {"bytes": b"text", "path": None}],
        "label": ["a", "b", None],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "odd/train.parquet"))
    odd = source(tmp_path / "odd", splits={"train": "train"}, columns=Columns("image", "label"))
    shard_writer.write(tmp_path / "set", {"odd": odd}, **(WRITING | {"max_rejects": 0.9}))
    reasons = {row["source"]: row["reason"] for row in pq.read_table(tmp_path / "set/rejected.parquet").to_pylist()}
    assert reasons.keys() == {"odd/train/000001", "odd/train/000002"}
    assert reasons["odd/train/000001"] == "the row has no image"
    assert reasons["odd/train/000002"].startswith("not a readable image")


def test_a_damaged_file_is_one_sentence(pets):
    (pets / "train.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ValueError, match=r"the datasets library cannot load .*pets: ") as error:
        source(pets).list_items(seed=0)
    assert "\n" not in str(error.value)


def test_without_the_library_the_error_names_the_command_to_install_it(pets, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"not installed. Run: pip install 'semmae\[hf\]'"):
        source(pets).list_items(seed=0)


def test_either_a_folder_or_the_hub():
    with pytest.raises(ValueError, match=r"give either path .* or hub"):
        source(Path("x"), hub=huggingface.Hub("a/b", None, None))


def test_labels_are_indices_names_or_nothing():
    assert [label_name(value, NAMES) for value in (0, "2", "dog", -1, None)] == ["cat", "eel", "dog", None, None]
    assert [label_name(value, None) for value in (7, "7", "ant")] == ["7", "7", "ant"]
    for value, message in ((3, "no name: 3, names are for 0 to 2"), ("ant", "none of the names"), (True, "neither a")):
        with pytest.raises(ValueError, match=message):
            label_name(value, NAMES)
