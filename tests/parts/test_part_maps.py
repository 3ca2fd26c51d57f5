"""Part maps are read as they were written, and only joined with the samples that they were made from."""

import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from semmae.data.dataset import Reader
from semmae.parts import part_maps
from tests.parts.example_maps import GRID, MADE_BY, PARTS, dataset, fill, labels, metadata, write

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
    assert list(found.channels) == (["part_map", "attention"] if attention else ["part_map"])
    np.testing.assert_array_equal(found.channels["part_map"], labels(keys))
    if attention:
        np.testing.assert_array_equal(found.channels["attention"], labels(keys) * 2)


def test_the_file_has_the_documented_columns(tmp_path):
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
        tmp_path / "y.parquet",
        keys=keys,
        channels={"attention": labels(keys) * 2, "part_map": np.asfortranarray(labels(keys))},
        metadata=dict(reversed(metadata().items())),
    )
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "y.parquet").read_bytes()


def test_files_that_do_not_hold_part_maps_are_refused(tmp_path):
    path = tmp_path / "x.parquet"
    with pytest.raises(ValueError, match=r"x.parquet does not exist; run dvc repro part_maps"):
        part_maps.read(path)
    path.write_text("no parquet")
    with pytest.raises(ValueError, match=r"x.parquet is damaged"):
        part_maps.read(path)
    write(path, ["a", "b"])
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(ValueError, match="without part maps"):
        part_maps.read(path)


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    path = tmp_path / "x.parquet"
    write(path, keys := [f"sample-{i}" for i in range(30)])
    whole, expected, refused = path.read_bytes(), part_maps.read(path), []
    for position in range(0, len(whole), 7):
        data = bytearray(whole)
        data[position] ^= 1
        path.write_bytes(data)
        try:
            found = part_maps.read(path)
        except ValueError as error:
            refused.append(str(error))
        else:
            assert found.keys == keys
            np.testing.assert_array_equal(found.channels["part_map"], expected.channels["part_map"])
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


@pytest.mark.parametrize(("channel", "highest"), [("part_map", PARTS), ("attention", 15)])
def test_values_out_of_range_are_refused_by_read_and_join(images, tmp_path, monkeypatch, channel, highest):
    reader = dataset(images)
    fill(reader, tmp_path / "maps")
    path = tmp_path / "maps" / "train-000001.parquet"
    stored = part_maps.read(path)
    values = stored.channels[channel].copy()
    values[2, 3] = highest + 1
    with monkeypatch.context() as unchecked:
        unchecked.setattr(part_maps, "num_values", lambda *_: 256)
        part_maps.write(path, keys=stored.keys, channels=stored.channels | {channel: values}, metadata=stored.metadata)
    message = f"train-000001.parquet holds the {channel} value {highest + 1}; expected 0 to {highest}. Delete it"
    with pytest.raises(ValueError, match=message):
        part_maps.read(path)
    with pytest.raises(ValueError, match=message):
        part_maps.join(tmp_path / "maps", reader, **MADE_BY)


# ----------------------------------------------------------------------------------------------------- the join


def test_join_returns_the_part_map_of_each_sample(images, tmp_path):
    reader = dataset(images)
    fill(reader, tmp_path / "maps")
    subset = np.random.default_rng(0).permutation(24)[:15]
    for samples in (reader, reader.select(subset), reader.select(np.array([23]))):
        maps = part_maps.join(tmp_path / "maps", samples, **MADE_BY)
        assert maps.keys == samples.keys
        np.testing.assert_array_equal(maps.channels["part_map"], labels(samples.keys))
        np.testing.assert_array_equal(maps.channels["attention"], labels(samples.keys) * 2)
        assert maps.metadata == {key: value for key, value in metadata().items() if key != "shard"}
    assert maps.grid == GRID
    assert part_maps.join(tmp_path / "maps", reader, teacher=None, parts=None).metadata["teacher"] == "the teacher"


@pytest.mark.parametrize("name", ["teacher", "parts"])
def test_part_maps_of_another_teacher_or_learner_are_refused_with_both_digests(images, tmp_path, name):
    reader = dataset(images)
    fill(reader, tmp_path / "maps")
    expected = MADE_BY | {name: "another"}
    message = f"was made with {name} the {name}, but another is expected; run dvc repro part_maps"
    with pytest.raises(ValueError, match=message):
        part_maps.join(tmp_path / "maps", reader, **expected)


def rewrite(reader: Reader, out: Path, keys: list[str] | None = None, **changes) -> str:
    """Replace the part maps of the second shard and return its name."""
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
        "missing": f"no part map in the right row for 1 of 24 samples, e.g. {own[-1]}; run dvc repro",
        "other": f"no part map in the right row for 1 of 24 samples, e.g. {own[-1]}; run dvc repro",
        "swapped": f"no part map in the right row for 2 of 24 samples, e.g. {own[0]}, {own[1]}; run dvc repro",
        "extra": f"has {len(own) + 1} part maps, but train-000001.tar has {len(own)} samples; run dvc repro",
    }[change]
    with pytest.raises(ValueError, match=message):
        part_maps.join(tmp_path / "maps", reader, **MADE_BY)


# ----------------------------------------------------------------------------------------------------- the summary


@pytest.mark.parametrize("background", [2, None])
def test_the_summary_counts_by_hand(tmp_path, background):
    cells = np.array([[0, 0, 0, 1], [0, 0, 0, 0]], np.uint8)
    given = metadata(grid=[2, 2], num_parts=2, background=background)
    part_maps.write(tmp_path / "x.parquet", keys=["a", "b"], channels={"part_map": cells}, metadata=given)
    summary = part_maps.summarize(part_maps.read(tmp_path / "x.parquet"))
    expected = {"0": {"size": 7 / 8, "images": 1.0}, "1": {"size": 1 / 8, "images": 0.5}}
    assert summary["parts"] == expected | ({} if background is None else {"background": {"size": 0.0, "images": 0.0}})
    assert summary["images"] == 2
    assert summary["grid"] == [2, 2]
    assert summary["bytes_per_image"] == (tmp_path / "x.parquet").stat().st_size / 2
