"""A dataset is reproducible to the byte, readable by webdataset, indexed exactly, and accounts for every input."""

import hashlib
import io
import json
import re
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from semmae.data import decoding
from semmae.sharding import shard_assignment, shard_writer
from semmae.sharding.sources.source_item import SourceItem
from semmae.sharding.sources.sources import Creatures, FolderMasks, Tree
from stages import shards as stage

WRITING = {"seed": 0, "short_side": None, "samples_per_shard": 8, "max_rejects": 0.0, "workers": 0}
COLUMNS = "key split shard offset size mask_offset mask_size orientation width height label class_name sha256 source"
CREATURES = Creatures(kind="creatures", train=20, val=6, size=32, seed=0)
RNG = np.random.default_rng(0)


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (20, 16), **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)


def save_mask(path: Path, size: tuple[int, int] = (20, 16), high: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, high, (size[1], size[0]), dtype=np.uint8)).save(path)


@pytest.fixture
def zoo(tmp_path: Path) -> Tree:
    """8 good samples of 2 classes, 5 with masks, in many forms; 7 inputs to be rejected; papers and hidden files."""
    root = tmp_path / "zoo"
    turned = Image.Exif()
    turned[decoding.ORIENTATION] = 6
    save(root / "train/cat/a.b.jpg")
    save(root / "train/cat/a_b.png", "RGBA")
    save(root / "train/cat/turned.jpg", exif=turned)
    save(root / "train/cat/katze \N{CAT}.gif", "P")
    save(root / "train/dog/plain.bmp")
    save(root / "train/dog/cmyk.tif", "CMYK")
    save(root / "train/dog/is_png.jpg", format="PNG")
    save(root / "val/dog/gray.webp", "L")
    save_mask(root / "masks/train/cat/a_b.png")
    save_mask(root / "masks/train/cat/turned.png", size=(16, 20))
    save_mask(root / "masks/train/dog/plain.png")
    save_mask(root / "masks/train/dog/is_png.png")
    save_mask(root / "masks/val/dog/gray.png")

    (root / "train/dog/notes.txt").write_text("not an image")
    (root / "train/dog/text.jpg").write_text("not an image")
    (root / "train/dog/empty.png").touch()
    (root / "train/dog/cut.jpg").write_bytes((root / "train/cat/a.b.jpg").read_bytes()[:-100])
    save(root / "train/dog/small_mask.jpg")
    save_mask(root / "masks/train/dog/small_mask.png", size=(10, 8))
    save(root / "train/dog/wild_mask.jpg")
    save_mask(root / "masks/train/dog/wild_mask.png", high=9)
    save(root / "train/stray.jpg")

    (root / "train/cat/.hidden.jpg").write_text("")
    (root / "README.md").write_text("")
    masks = FolderMasks(folder="masks", kind="foreground", names=["background", "animal"])
    return Tree(kind="folder", path=str(root), splits=None, val_fraction=None, labels=True, masks=masks)


def write(out: Path, *sources, **changes) -> dict:
    return shard_writer.write(out, {f"s{i}": source for i, source in enumerate(sources)}, **{**WRITING, **changes})


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def rows(folder: Path, name: str = "index") -> list[dict]:
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def test_equal_input_gives_equal_bytes_for_any_number_of_workers(tmp_path, zoo):
    for name, workers in (("once", 0), ("twice", 0), ("with workers", 2)):
        write(tmp_path / name, zoo, replace(zoo, masks=None), max_rejects=0.5, workers=workers)
    assert contents(tmp_path / "once") == contents(tmp_path / "twice") == contents(tmp_path / "with workers")
    write(tmp_path / "other seed", zoo, replace(zoo, masks=None), max_rejects=0.5, seed=1)
    assert contents(tmp_path / "once") != contents(tmp_path / "other seed")


def test_webdataset_reads_the_samples_of_the_index(tmp_path, zoo):
    out = tmp_path / "set"
    write(out, zoo, max_rejects=0.5)
    assert " ".join(pq.read_schema(out / "index.parquet").names) == COLUMNS
    index = {row["key"]: row for row in rows(out)}
    read = {}
    for shard in json.loads((out / "shards.json").read_text())["shards"]:
        data = (out / shard["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
        samples = list(webdataset.WebDataset(str(out / shard["file"]), shardshuffle=False, empty_check=False))
        assert len(samples) == shard["count"]
        for sample in samples:
            row = read[sample["__key__"]] = index[sample["__key__"]]
            (extension,) = {"jpg", "png", "webp"} & sample.keys()
            image = sample[extension]
            assert (row["shard"], row["split"]) == (shard["file"], shard["split"])
            assert data[row["offset"] : row["offset"] + row["size"]] == image
            assert hashlib.sha256(image).hexdigest() == row["sha256"]
            assert decoding.to_rgb(image).shape == (row["height"], row["width"], 3)
            assert sample["cls"] == str(row["label"]).encode()
            assert row["class_name"] == ["cat", "dog"][row["label"]] == row["source"].split("/")[2]
            if row["mask_offset"] is None:
                assert "mask.png" not in sample
            else:
                assert data[row["mask_offset"] : row["mask_offset"] + row["mask_size"]] == sample["mask.png"]
                assert decoding.decode_mask(sample["mask.png"]).shape == (row["height"], row["width"])
    assert read == index
    assert sum(row["mask_offset"] is not None for row in index.values()) == 5
    assert index["train_cat_turned"]["orientation"] == 6
    assert (index["train_cat_turned"]["width"], index["train_cat_turned"]["height"]) == (16, 20)


def test_every_input_is_a_sample_or_a_reject_with_its_reason(tmp_path, zoo):
    meta = write(tmp_path / "set", zoo, max_rejects=0.5)
    rejected = {row["source"]: row["reason"] for row in rows(tmp_path / "set", "rejected")}
    reasons = {
        "s0/train/dog/notes.txt": "not a readable image",
        "s0/train/dog/text.jpg": "not a readable image",
        "s0/train/dog/empty.png": "the file is empty",
        "s0/train/dog/cut.jpg": "the image cannot be decoded: image file is truncated",
        "s0/train/dog/small_mask.jpg": "the mask and its upright image differ in size: 10x8 for 20x16",
        "s0/train/dog/wild_mask.jpg": "the mask holds an index without a name: 8",
        "s0/train/stray.jpg": "the file is in no class folder",
    }
    assert rejected.keys() == reasons.keys()
    assert all(rejected[source].startswith(reason) for source, reason in reasons.items())
    accepted = [row["source"] for row in rows(tmp_path / "set")]
    assert len(accepted) == 8 == len(set(accepted) - rejected.keys())
    assert meta["sources"]["s0"]["inputs"] == 15 == len(accepted) + len(rejected)
    assert meta["class_names"] == ["cat", "dog"]
    assert (meta["mask_kind"], meta["mask_names"]) == ("foreground", ["background", "animal"])


def test_too_many_rejects_are_an_error_with_the_top_reasons_and_no_output(tmp_path, zoo):
    out = tmp_path / "set"
    write(out, CREATURES)
    before = contents(out)
    with pytest.raises(ValueError, match=r"7 of 15 inputs are rejected, max_rejects allows 46.00%") as error:
        write(out, zoo, max_rejects=0.46)
    reasons_shown = str(error.value).splitlines()[1:]
    assert len(reasons_shown) == 5
    assert reasons_shown[0].startswith("  2 x not a readable image")
    assert "(e.g. s0/train/dog/notes.txt: known are" in reasons_shown[0]
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_rejects_must_not_empty_a_split(tmp_path, zoo):
    (Path(zoo.path) / "val/dog/gray.webp").write_text("broken")
    with pytest.raises(ValueError, match="so split val would be empty"):
        write(tmp_path / "set", zoo, max_rejects=0.9)


def test_the_order_is_a_shuffle_and_an_image_more_changes_one_shard(tmp_path):
    def planned(count: int) -> list[list[int]]:
        found = [SourceItem(f"{i}.jpg", "train", None, None, None, "") for i in range(count)]
        tasks = shard_assignment.assign_shards({"s": found}, seed=0, samples_per_shard=100)
        return [[int(task.key) for task in tasks if task.shard == shard] for shard in range(10)]

    before, after = planned(1000), planned(1001)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
    assert all(60 < len(keys) < 140 for keys in before)
    order = np.concatenate(before)
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert abs(np.corrcoef(np.arange(1000), order)[0, 1]) < 0.1


@pytest.mark.parametrize(
    "paths",
    [
        ["a/b.c/d.jpg", "a/b.c/e.jpg"],
        ["x/a.jpg", "x/a.png", "x_a.jpg", "X/a.jpg"],
        ["../up.jpg", "/abs.jpg", "\N{CAT}.jpg", "\N{DOG}.jpg", "with space.jpg", "\n.jpg", "..jpg"],
        ["d" * 300 + "1.jpg", "d" * 300 + "2.jpg"],
    ],
)
def test_keys_are_plain_unique_and_independent_of_order(paths):
    keys = shard_assignment.unique_keys(paths)
    assert len({key.lower() for key in keys}) == len(paths)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key) for key in keys)
    assert dict(zip(paths[::-1], shard_assignment.unique_keys(paths[::-1]), strict=True)) == dict(
        zip(paths, keys, strict=True)
    )


def test_keys_name_their_images(tmp_path, zoo):
    assert shard_assignment.unique_keys(["train/cat/7.jpg"]) == ["train_cat_7"]
    write(tmp_path / "union", replace(zoo, masks=None), CREATURES, max_rejects=0.5)
    assert {row["key"].split("_")[0] for row in rows(tmp_path / "union")} == {"s0", "s1"}


def test_tar_headers_carry_no_time_and_no_owner(tmp_path):
    write(tmp_path / "set", CREATURES)
    with tarfile.open(tmp_path / "set/train-000000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def test_resize_reduces_image_and_mask_together(tmp_path):
    source = Creatures(kind="creatures", train=4, val=0, size=48, seed=0)
    write(tmp_path / "set", source, short_side=32)
    with tarfile.open(tmp_path / "set/train-000000.tar") as tar:
        sizes = {member.name.split(".", 1)[1]: Image.open(io.BytesIO(tar.extractfile(member).read())).size
                 for member in tar if not member.name.endswith(".cls")}  # fmt: skip
    assert sizes == {"png": (32, 32), "mask.png": (32, 32)}


def test_unlabeled_samples_have_no_cls(tmp_path):
    for i in range(3):
        save(tmp_path / f"flat/{i}.jpg")
    source = Tree(kind="folder", path=str(tmp_path / "flat"), splits=None, val_fraction=None, labels=False, masks=None)
    meta = write(tmp_path / "set", source)
    with tarfile.open(tmp_path / "set/train-000000.tar") as tar:
        assert sorted(tar.getnames()) == ["0.jpg", "1.jpg", "2.jpg"]
    assert (meta["class_names"], meta["mask_kind"], meta["mask_names"]) == ([], None, [])
    assert {(row["label"], row["class_name"]) for row in rows(tmp_path / "set")} == {(None, None)}


def test_masks_of_different_meaning_do_not_mix(tmp_path, zoo):
    bears = FolderMasks(folder="masks", kind="foreground", names=["background", "bear"])
    with pytest.raises(ValueError, match="masks of sources s0 and s1 differ"):
        write(tmp_path / "set", zoo, replace(zoo, masks=bears), max_rejects=0.5)


def test_check_names_the_sources_that_changed(tmp_path, zoo):
    out, named = tmp_path / "set", {"zoo": zoo, "more": replace(zoo, masks=None, splits=["val"])}
    shard_writer.write(out, named, **{**WRITING, "max_rejects": 0.5})
    assert shard_writer.changed_sources(out, named) == []
    assert shard_writer.changed_sources(out, {"zoo": zoo}) == ["more"]
    mask = Path(zoo.path) / "masks/train/cat/a_b.png"
    before = mask.read_bytes()
    save_mask(mask)
    assert shard_writer.changed_sources(out, named) == ["zoo"]
    mask.write_bytes(before)
    assert shard_writer.changed_sources(out, named) == []
    (Path(zoo.path) / "train/dog/plain.bmp").rename(Path(zoo.path) / "train/dog/renamed.bmp")
    assert shard_writer.changed_sources(out, named) == ["zoo"]


PARAMS = """
shards:
  writing: {seed: 0, short_side: null, samples_per_shard: 8, max_rejects: 0.01, workers: 0}
  datasets:
    creatures: {sources: {drawn: {kind: creatures, train: 6, val: 3, size: 24, seed: 0}}}
    photos:
      sources:
        photos: {kind: folder, path: photos, splits: null, val_fraction: null, labels: true, masks: null}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    Path("params.yaml").write_text(PARAMS)
    return tmp_path


def run_stage(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(sys, "argv", ["shards", *names])
    stage.main()


def test_the_stage_writes_its_dataset_and_prints_a_summary(project, monkeypatch, capsys):
    run_stage(monkeypatch, "creatures")
    out = project / "data/shards/creatures"
    assert set(contents(out)) == {
        "index.parquet", "rejected.parquet", "shards.json", "train-000000.tar", "val-000000.tar"
    }  # fmt: skip
    assert "6 train, 3 val in 2 shards, 8 classes, masks: parts; 0 of 9 inputs rejected" in capsys.readouterr().out


def test_relative_paths_are_resolved_against_data_raw_of_the_main_repository(project, monkeypatch):
    save(project / "main/data/raw/photos/train/cat/1.jpg")
    monkeypatch.setenv("DVC_ROOT", str(project / "main"))
    run_stage(monkeypatch, "photos")
    assert len(rows(project / "data/shards/photos")) == 1


@pytest.mark.parametrize(
    ("names", "old", "new", "message"),
    [
        ([], "", "", "shards has no dataset ''; params.yaml has creatures, photos"),
        (["birds"], "", "", "shards has no dataset 'birds'; params.yaml has creatures, photos"),
        (["photos"], "", "", "data/raw/photos is not a folder"),
        (["creatures"], "train: 6", "train: six", "train is 'six'"),
        (["creatures"], "train: 6, ", "", "missing key"),
        (["creatures"], "train: 6", "train: 6, shape: 3", "unknown key"),
        (["creatures"], "kind: creatures", "kind: monsters", "'creatures', 'folder', 'tar'"),
        (["creatures"], "max_rejects: 0.01", "max_rejects: 2", "less than 1"),
    ],
)
def test_bad_input_is_one_clear_sentence(names, old, new, message, project, monkeypatch):
    Path("params.yaml").write_text(PARAMS.replace(old, new))
    with pytest.raises(ValueError, match=re.escape(message)):
        run_stage(monkeypatch, *names)
    assert not (project / "data/shards").exists() or not list((project / "data/shards").iterdir())
