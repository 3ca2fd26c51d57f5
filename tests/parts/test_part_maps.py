"""Part maps come back as they were written, belong to their samples or are refused, and are made once."""

import os
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from semmae.core.paths import state_root
from semmae.data.dataset import Reader
from semmae.parts import part_maps
from semmae.sharding import shard_writer
from semmae.sharding.sources.sources import Tree

GRID, PARTS = (3, 4), 5
MADE_BY = {"teacher": "the teacher", "parts": "the parts"}


@pytest.fixture
def images(tmp_path) -> Path:
    """24 flat colors in a folder."""
    for i in range(24):
        path = tmp_path / "images" / "train" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6), (i, 2 * i, 3 * i)).save(path)
    return tmp_path / "images"


def dataset(images: Path) -> Reader:
    """The folder as a dataset of four shards."""
    out = images.with_name("dataset")
    tree = Tree(kind="folder", path=str(images), splits=None, val_fraction=None, labels=False, masks=None)
    shard_writer.write(out, {"a": tree}, seed=0, short_side=None, samples_per_shard=6, max_rejects=0.0, workers=0)
    return Reader(out, "train")


def labels(keys: list[str]) -> np.ndarray:
    """A part map that its key determines, background included."""
    return np.stack([np.frombuffer((key * 12).encode()[:12], np.uint8) % (PARTS + 1) for key in keys])


def metadata(**changes) -> dict:
    return {"grid": list(GRID), "num_parts": PARTS, "background": PARTS, "shard": "the shard", **MADE_BY, **changes}


def write(path: Path, keys: list[str], *, attention: bool = True, **changes) -> None:
    levels = labels(keys) * 2 if attention else None
    part_maps.write(path, keys=keys, part_maps=labels(keys), attention=levels, metadata=metadata(**changes))


def fill(reader: Reader, out: Path, **changes) -> list[str]:
    """What the stage does: make what the store lacks, assemble; returns the shards that were made."""
    made, digest = [], part_maps.store_digest(**MADE_BY, params={})
    for entry in reader.meta["shards"]:
        keys = [key for key, shard in zip(reader.keys, reader.shards, strict=True) if shard == entry["file"]]
        if not part_maps.stored(digest, entry["sha256"], keys=keys):
            write(part_maps.store_path(digest, entry["sha256"]), keys, shard=entry["sha256"], **changes)
            made.append(entry["file"])
    part_maps.assemble(out, digest=digest, shards={entry["file"]: entry["sha256"] for entry in reader.meta["shards"]})
    return made


# ----------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("attention", [True, False])
def test_part_maps_come_back_as_they_were_written(tmp_path, attention):
    keys = [f"sample-{i}" for i in range(100)]
    write(tmp_path / "x.parquet", keys, attention=attention)
    found = part_maps.read(tmp_path / "x.parquet")
    assert found.keys == keys
    assert found.grid == GRID
    assert found.metadata == metadata()
    assert found.num_bytes == (tmp_path / "x.parquet").stat().st_size
    np.testing.assert_array_equal(found.part_map, labels(keys))
    if attention:
        np.testing.assert_array_equal(found.attention, labels(keys) * 2)
    else:
        assert found.attention is None


def test_the_file_has_the_columns_of_the_contract(tmp_path):
    write(tmp_path / "x.parquet", ["a", "b"])
    schema = pq.read_schema(tmp_path / "x.parquet")
    assert [(field.name, str(field.type)) for field in schema] == [
        ("key", "string"), ("part_map", "fixed_size_binary[12]"), ("attention", "fixed_size_binary[12]"),
    ]  # fmt: skip
    assert pq.read_table(tmp_path / "x.parquet")["part_map"][1].as_py() == labels(["b"]).tobytes()


def test_the_same_content_gives_the_same_bytes(tmp_path):
    keys = [f"sample-{i}" for i in range(2000)]
    write(tmp_path / "x.parquet", keys)
    time.sleep(0.01)
    part_maps.write(
        tmp_path / "y.parquet", keys=keys, part_maps=np.asfortranarray(labels(keys)), attention=labels(keys) * 2,
        metadata=dict(reversed(metadata().items())),
    )  # fmt: skip
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "y.parquet").read_bytes()


def test_files_that_are_no_part_maps_are_refused(tmp_path):
    path = tmp_path / "x.parquet"
    with pytest.raises(ValueError, match=r"x.parquet does not exist; run dvc repro part_maps"):
        part_maps.read(path)
    path.write_text("no parquet")
    with pytest.raises(ValueError, match=r"x.parquet is damaged"):
        part_maps.read(path)
    write(path, ["a", "b"])
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(ValueError, match="none of part maps"):
        part_maps.read(path)


def test_a_bit_flipped_anywhere_is_named_or_changes_nothing(tmp_path):
    path = tmp_path / "x.parquet"
    write(path, keys := [f"sample-{i}" for i in range(30)])
    whole, expected, refused = path.read_bytes(), part_maps.read(path), []
    for place in range(0, len(whole), 7):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        try:
            found = part_maps.read(path)
        except ValueError as error:
            refused.append(str(error))
        else:
            assert found.keys == keys
            np.testing.assert_array_equal(found.part_map, expected.part_map)
    assert len(refused) > 10
    assert all("x.parquet" in error for error in refused)


def test_attention_keeps_its_proportions_in_16_levels():
    attention = np.array(
        [[0.0, 0.01, 0.2, 0.4, 0.6], [0.0, 0.0, 0.0, 0.0, 0.0], [1e-9, 1e-9, 1e-9, 1e-9, 1e-9]], np.float32
    )
    levels = part_maps.quantize_attention(attention)
    assert levels.tolist() == [[0, 1, 5, 10, 15], [0] * 5, [15] * 5]
    weights = np.random.default_rng(0).dirichlet(np.ones(196), size=50)
    levels = part_maps.quantize_attention(weights)
    error = np.abs(levels / 15 - weights / weights.max(1, keepdims=True))
    assert error[levels > 1].max() <= 0.5 / 15 + 1e-9
    with pytest.raises(ValueError, match="expected weights >= 0"):
        part_maps.quantize_attention(-attention)


# ----------------------------------------------------------------------------------------------------- the join


def test_a_join_gives_every_sample_its_own_part_map(images, tmp_path):
    reader = dataset(images)
    fill(reader, tmp_path / "maps")
    some = np.random.default_rng(0).permutation(24)[:15]
    for samples in (reader, reader.select(some), reader.select(np.array([23]))):
        maps = part_maps.join(tmp_path / "maps", samples, **MADE_BY)
        assert maps.keys == samples.keys
        np.testing.assert_array_equal(maps.part_map, labels(samples.keys))
        np.testing.assert_array_equal(maps.attention, labels(samples.keys) * 2)
        assert maps.metadata == {key: value for key, value in metadata().items() if key != "shard"}
    assert maps.grid == GRID
    assert part_maps.join(tmp_path / "maps", reader, teacher=None, parts=None).metadata["teacher"] == "the teacher"


@pytest.mark.parametrize("what", ["teacher", "parts"])
def test_part_maps_of_another_teacher_are_refused_by_both_names(images, tmp_path, what):
    reader = dataset(images)
    fill(reader, tmp_path / "maps")
    expected = MADE_BY | {what: "another"}
    message = f"was made with {what} the {what}, but another is expected; run dvc repro part_maps"
    with pytest.raises(ValueError, match=message):
        part_maps.join(tmp_path / "maps", reader, **expected)


def rewrite(reader: Reader, out: Path, keys: list[str] | None = None, **changes) -> str:
    """Replace the part maps of the second shard; returns its name."""
    entry = reader.meta["shards"][1]
    own = [key for key, shard in zip(reader.keys, reader.shards, strict=True) if shard == entry["file"]]
    path = out / Path(entry["file"]).with_suffix(".parquet")
    write(path, own if keys is None else keys, **({"shard": entry["sha256"]} | changes))
    return entry["file"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard": "0123"}, r"train-000001.parquet was made with shard 0123, but [0-9a-f]{64} is expected"),
        ({"grid": [4, 3]}, r"train-000001.parquet was made with grid \[4, 3\], but \[3, 4\] is expected"),
        (
            {"attention": False},
            r"with columns \['key', 'part_map'\], but \['key', 'part_map', 'attention'\] is expected",
        ),
    ],
)
def test_a_file_unlike_the_others_is_refused(images, tmp_path, changes, message):
    reader = dataset(images)
    fill(reader, tmp_path / "maps")
    rewrite(reader, tmp_path / "maps", **changes)
    with pytest.raises(ValueError, match=message):
        part_maps.join(tmp_path / "maps", reader, **MADE_BY)


def test_a_missing_shard_is_named(images, tmp_path):
    reader = dataset(images)
    fill(reader, tmp_path / "maps")
    (tmp_path / "maps" / "train-000002.parquet").unlink()
    with pytest.raises(
        ValueError, match=r"no part maps for 1 of 4 shards, e.g. train-000002.tar; run dvc repro part_maps"
    ):
        part_maps.join(tmp_path / "maps", reader, **MADE_BY)


@pytest.mark.parametrize("change", ["missing", "other", "swapped", "extra"])
def test_part_maps_of_other_samples_are_counted_with_examples(images, tmp_path, change):
    reader = dataset(images)
    fill(reader, tmp_path / "maps")
    own = [key for key, shard in zip(reader.keys, reader.shards, strict=True) if shard == "train-000001.tar"]
    keys = {
        "missing": own[:-1],
        "other": [*own[:-1], "other"],
        "swapped": [own[1], own[0], *own[2:]],
        "extra": [*own, "extra"],
    }[change]
    rewrite(reader, tmp_path / "maps", keys)
    message = {
        "missing": f"no part map in its place for 1 of 24 samples, e.g. {own[-1]}; run dvc repro",
        "other": f"no part map in its place for 1 of 24 samples, e.g. {own[-1]}; run dvc repro",
        "swapped": f"no part map in its place for 2 of 24 samples, e.g. {own[0]}, {own[1]}; run dvc repro",
        "extra": f"has {len(own) + 1} part maps, but train-000001.tar has {len(own)} samples; run dvc repro",
    }[change]
    with pytest.raises(ValueError, match=message):
        part_maps.join(tmp_path / "maps", reader, **MADE_BY)


# ----------------------------------------------------------------------------------------------------- the store


def test_one_image_changed_makes_one_shard_anew(images, tmp_path):
    assert len(fill(dataset(images), tmp_path / "maps")) == 4
    assert fill(dataset(images), tmp_path / "maps") == []
    Image.new("RGB", (6, 6), (255, 0, 0)).save(images / "train" / "07.png")
    reader = dataset(images)
    changed = reader.shards[next(i for i, key in enumerate(reader.keys) if "07" in key)]
    assert fill(reader, tmp_path / "maps") == [changed]
    part_maps.join(tmp_path / "maps", reader, **MADE_BY)
    assert part_maps.listing()[0].num_shards == 5


def test_the_name_of_a_store_entry_depends_on_all_that_makes_it(monkeypatch):
    base = {"teacher": "t", "parts": "p", "params": {"grid": [14, 14], "attention": True}}
    digest = part_maps.store_digest(**base)
    assert digest == part_maps.store_digest(**base)
    for change in ({"teacher": "u"}, {"parts": "q"}, {"params": {"grid": [28, 28], "attention": True}}):
        assert part_maps.store_digest(**(base | change)) != digest
    monkeypatch.setattr(part_maps, "REVISION", part_maps.REVISION + 1)
    assert part_maps.store_digest(**base) != digest


@pytest.mark.parametrize("damage", ["half", "flipped", "row missing", "interrupted"])
def test_a_damaged_store_entry_is_not_used_but_made_anew(images, tmp_path, damage):
    reader = dataset(images)
    fill(reader, tmp_path / "maps")
    entry = reader.meta["shards"][1]
    path = part_maps.store_path(part_maps.store_digest(**MADE_BY, params={}), entry["sha256"])
    whole = path.read_bytes()
    if damage == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        path.write_bytes(whole[:60] + bytes([whole[60] ^ 255]) + whole[61:])
    elif damage == "row missing":
        write(path, part_maps.read(path).keys[:-1], shard=entry["sha256"])
    else:
        path.rename(path.with_name(f".{path.name}.123.tmp"))
    assert fill(reader, tmp_path / "maps") == [entry["file"]]
    assert path.read_bytes() == whole


def test_two_writers_of_one_entry_do_no_harm(tmp_path, monkeypatch):
    """A second process writes the whole entry while the first is in the middle of it."""
    path, write_table = tmp_path / "store" / "x.parquet", pq.write_table

    def interrupted(table, where, **settings):
        with monkeypatch.context() as other:
            other.setattr(pq, "write_table", write_table)
            other.setattr(os, "getpid", lambda: 1)
            write(path, ["a", "b"])
        assert part_maps.read(path).keys == ["a", "b"]
        write_table(table, where, **settings)

    monkeypatch.setattr(pq, "write_table", interrupted)
    write(path, ["a", "b"])
    assert part_maps.read(path).keys == ["a", "b"]
    assert list(path.parent.iterdir()) == [path]


def test_the_output_is_a_copy_and_whole_or_absent(images, tmp_path):
    reader, out = dataset(images), tmp_path / "maps"
    fill(reader, out)
    digest = part_maps.store_digest(**MADE_BY, params={})
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert all(path.stat().st_nlink == 1 and not path.is_symlink() for path in out.iterdir())
    with pytest.raises(FileNotFoundError):
        part_maps.assemble(out, digest=digest, shards={"train-000000.tar": "no such shard"})
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    part_maps.assemble(out, digest=digest, shards={"train-000000.tar": reader.meta["shards"][0]["sha256"]})
    assert [path.name for path in out.iterdir()] == ["train-000000.parquet"]  # nothing of the old output stays


def test_the_store_is_listed_and_pruned_by_last_use(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMMAE_STATE", str(tmp_path / "pruned"))  # whatever conftest does: all of it is deleted here
    for digest, shard, days in [("old", "a", 40), ("old", "b", 50), ("mixed", "a", 1), ("mixed", "b", 40)]:
        path = part_maps.store_path(digest, shard)
        write(path, ["x"])
        os.utime(path, (time.time() - days * 86_400,) * 2)
    size = path.stat().st_size
    remains = path.with_name(".c.parquet.99.tmp")
    remains.write_bytes(b"half")
    os.utime(remains, (0, 0))
    assert [(entry.digest, entry.num_shards, entry.num_bytes) for entry in part_maps.listing()] == [
        ("mixed", 2, 2 * size), ("old", 2, 2 * size),
    ]  # fmt: skip
    assert part_maps.prune(unused_days=30.0) == 3 * size + 4
    assert [(entry.digest, entry.num_shards) for entry in part_maps.listing()] == [("mixed", 1)]
    assert part_maps.prune(unused_days=0.0) == size
    assert part_maps.listing() == []
    assert list((state_root() / "part_maps").iterdir()) == []


def test_use_keeps_an_entry(images, tmp_path):
    reader = dataset(images)
    fill(reader, tmp_path / "maps")
    for path in (state_root() / "part_maps").glob("*/*"):
        os.utime(path, (0, 0))
    fill(reader, tmp_path / "maps")
    assert part_maps.prune(unused_days=1.0) == 0


# ----------------------------------------------------------------------------------------------------- the summary


@pytest.mark.parametrize("background", [2, None])
def test_the_summary_counts_by_hand(tmp_path, background):
    cells = np.array([[0, 0, 0, 1], [0, 0, 0, 0]], np.uint8)
    given = metadata(grid=[2, 2], num_parts=2, background=background)
    part_maps.write(tmp_path / "x.parquet", keys=["a", "b"], part_maps=cells, attention=None, metadata=given)
    summary = part_maps.summary(part_maps.read(tmp_path / "x.parquet"))
    expected = {"0": {"size": 7 / 8, "images": 1.0}, "1": {"size": 1 / 8, "images": 0.5}}
    assert summary["parts"] == expected | ({} if background is None else {"background": {"size": 0.0, "images": 0.0}})
    assert summary["images"] == 2
    assert summary["grid"] == [2, 2]
    assert summary["bytes_per_image"] == (tmp_path / "x.parquet").stat().st_size / 2
