"""Existing shards: samples are those of webdataset, copied or indexed in place, and every input is accounted for."""

import hashlib
import io
import json
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image
from typer.testing import CliRunner

from semmae.cli.main import app
from semmae.core.digests import file_digest
from semmae.data import decoding
from semmae.data.dataset import Reader, verify_shards
from semmae.parts import part_maps
from semmae.sharding import shard_writer
from semmae.sharding.creatures import draw
from semmae.sharding.sources import sources
from semmae.sharding.sources.sources import Creatures, WebDataset
from semmae.sharding.sources.webdataset import MemberLabels, MemberMasks, group_members
from stages.shards import summary
from tests import troublesome
from tests.project import Project, call

WRITING = {"seed": 0, "short_side": None, "samples_per_shard": 8, "max_rejects": 0.0, "workers": 0}
SPECIES = MemberLabels(member="json", field="species", names=None)
RNG = np.random.default_rng(0)


def encoded(form: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (20, 16), **options) -> bytes:
    buffer = io.BytesIO()
    pixels = RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def mask(size: tuple[int, int] = (20, 16), high: int = 2) -> bytes:
    return decoding.encode_png(RNG.integers(0, high, size[::-1], dtype=np.uint8))


def write_tar(path: Path, samples: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def source(root: Path, **changes) -> WebDataset:
    given = {"shards": {"train": "*.tar"}, "in_place": True, "val_fraction": None, "labels": None, "masks": None}
    return WebDataset(kind="webdataset", path=str(root), **(given | changes))


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """The output of img2dataset: 2 shards of 5 and 4 samples with captions and metadata, and its tables."""
    for shard, count in ((0, 5), (1, 4)):
        samples = []
        for number in range(count):
            key = f"{shard:05d}{number:04d}"
            fields = {"key": key, "species": ("cat", "dog")[number % 2], "photographer": f"p{number // 2}"}
            samples.append({"__key__": key, "jpg": encoded(), "txt": b"a cat", "json": json.dumps(fields).encode()})
        write_tar(tmp_path / f"web/{shard:05d}.tar", samples)
        (tmp_path / f"web/{shard:05d}.parquet").write_bytes(b"PAR1")
        (tmp_path / f"web/{shard:05d}_stats.json").write_text("{}")
    return tmp_path / "web"


def write(out: Path, *given: sources.AnySource, **changes) -> Reader:
    shard_writer.write(out, {f"s{i}": one for i, one in enumerate(given)}, **{**WRITING, **changes})
    return Reader(out, verify=True)


def rejected(out: Path) -> dict[str, str]:
    return {row["source"]: row["reason"] for row in pq.read_table(out / "rejected.parquet").to_pylist()}


def test_in_place_the_index_reads_what_webdataset_reads_and_nothing_is_copied(web, tmp_path):
    before = {path.name: path.read_bytes() for path in web.iterdir()}
    reader = write(tmp_path / "set", source(web, labels=SPECIES))
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
        "index.parquet", "rejected.parquet", "shards.json"
    ]  # fmt: skip
    assert {path.name: path.read_bytes() for path in web.iterdir()} == before
    read = [s for i in range(2) for s in webdataset.WebDataset(str(web / f"{i:05d}.tar"), shardshuffle=False)]
    assert reader.keys == [sample["__key__"] for sample in read]
    rows = pq.read_table(tmp_path / "set/index.parquet").to_pylist()
    for i, (sample, row) in enumerate(zip(read, rows, strict=True)):
        assert reader.encoded(i) == sample["jpg"]
        assert hashlib.sha256(sample["jpg"]).hexdigest() == row["sha256"]
        assert np.array_equal(reader.image(i), decoding.to_rgb(sample["jpg"]))
        assert row["class_name"] == json.loads(sample["json"])["species"] == reader.class_names[reader.labels[i]]
        assert row["source"] == f"s0/{row['shard']}/{row['key']}.jpg"
    assert reader.rows_in_shard().tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    for shard, count in zip(reader.meta["shards"], (5, 4), strict=True):
        path = Path(shard["location"])
        assert path == web / shard["file"]
        assert (shard["count"], shard["split"]) == (count, "train")
        assert (shard["bytes"], shard["sha256"]) == (path.stat().st_size, file_digest(path))
    assert "9 train in 2 shards, 2 classes" in summary(tmp_path / "set", reader.meta)


def test_copied_shards_are_like_any_other_source(web, tmp_path):
    still = write(tmp_path / "still", source(web, labels=SPECIES))
    copied = write(tmp_path / "copied", source(web, labels=SPECIES, in_place=False))
    assert "location" not in copied.meta["shards"][0]
    assert sorted(copied.keys) == still.keys
    for i, key in enumerate(copied.keys):
        assert copied.encoded(i) == still.encoded(still.keys.index(key))
    shutil.rmtree(web)
    assert np.array_equal(copied.image(0), decoding.to_rgb(copied.encoded(0)))


def test_a_union_of_shards_in_place_with_others(web, tmp_path):
    drawn = Creatures(kind="creatures", train=10, val=4, size=32, seed=0)
    reader = write(tmp_path / "set", source(web, labels=SPECIES), drawn)
    assert len(reader) == 9 + 14
    assert set(reader.shards) == {"s0_00000.tar", "s0_00001.tar", "train-000000.tar", "val-000000.tar"}
    assert all(key.startswith(("s0_00000000", "s0_00001000", "s1_")) for key in reader.keys)
    assert {reader.image(i).shape for i in range(len(reader))} == {(16, 20, 3), (32, 32, 3)}
    assert reader.meta["samples"] == {"train": 19, "val": 4}
    with pytest.raises(ValueError, match="sources s0 and s1 both index"):
        write(tmp_path / "twice", source(web), source(web))


def test_patterns_select_the_shards_of_a_split(web, tmp_path):
    shutil.copy(web / "00001.tar", web / "00002.tar")
    some = source(web, shards={"train": "{00000..00001}.tar", "val": "*2.tar"}, in_place=False)
    reader = write(tmp_path / "set", some)
    assert reader.meta["samples"] == {"train": 9, "val": 4}
    with pytest.raises(ValueError, match=r"has no file 00003.tar, which \{00000..00003\}.tar asks for"):
        replace(some, shards={"train": "{00000..00003}.tar"}).list_items(seed=0)
    with pytest.raises(ValueError, match=r"has no file x/\*.tar$"):
        replace(some, shards={"train": "x/*.tar"}).list_items(seed=0)
    with pytest.raises(ValueError, match=r"00002.tar is in split train and in split val"):
        replace(some, shards={"train": "*.tar", "val": "*2.tar"}).list_items(seed=0)
    with pytest.raises(ValueError, match=r"00001.tar and .*00002.tar have the same bytes"):
        write(tmp_path / "same", source(web))


def test_samples_are_those_of_webdataset(tmp_path):
    turned = Image.Exif()
    turned[decoding.ORIENTATION] = 6
    write_tar(
        tmp_path / "a.b/0.tar",
        [
            {"__key__": "deep/er/1", "JPG": encoded(exif=turned), "npy": b"-", "cls": b"1"},
            {"__key__": "cmyk", "jpeg": encoded(mode="CMYK"), "cls": b"0"},
            {"__key__": "gif", "gif": encoded("GIF", "P"), "cls": b"10\n"},
            {"__key__": "tiff", "tif": encoded("TIFF", exif=turned), "cls": b"-1"},
            {"__key__": "deep", "seg.png": mask(), "png": encoded("PNG", "RGBA")},
        ],
    )
    labels, masks = MemberLabels(member="cls", field=None, names=None), MemberMasks("parts", ["a", "b"], "seg.png")
    reader = write(tmp_path / "set", source(tmp_path / "a.b", labels=labels, masks=masks))
    assert reader.keys == ["deep_er_1", "cmyk", "gif", "tiff", "deep"]
    assert reader.class_names == ["0", "1", "10"]
    assert reader.labels.tolist() == [1, 0, 2, -1, -1]
    rows = pq.read_table(tmp_path / "set/index.parquet").to_pylist()
    for i, row in enumerate(rows):
        assert reader.image(i).shape == (row["height"], row["width"], 3)
    assert [(row["width"], row["height"], row["orientation"]) for row in rows[:4]] == [
        (16, 20, 6), (20, 16, 1), (20, 16, 1), (16, 20, 1)
    ]  # fmt: skip
    assert [reader.mask(i) is None for i in range(5)] == [True] * 4 + [False]
    assert reader.mask(4).shape == (16, 20)


@pytest.mark.parametrize("name", [*troublesome.SAMPLES, "meta", "interrupted", "reserved"])
def test_groups_are_those_of_webdataset(name, tmp_path):
    """Whatever webdataset reads is a group with the same bytes; a sample that it cannot read is refused."""
    link = troublesome.member("y.png", b"", tarfile.SYMTYPE, linkname="x.png")
    image, text = troublesome.shard("x", png=troublesome.PNG), troublesome.shard("x", txt=b"text")
    more = {
        "meta": troublesome.member("__meta__/x.png") + troublesome.member("__x__") + troublesome.member("x"),
        "interrupted": image + link + troublesome.member("no extension") + text,
        "reserved": image + troublesome.member("x.__bad__"),
    }
    data = more[name] if name in more else troublesome.SAMPLES[name][0]
    (tmp_path / "0.tar").write_bytes(data + bytes(1024))
    accepted = {
        group.key: {extension: blob.read() for extension, blob in group.members.items()}
        for group in group_members(tmp_path / "0.tar")
        if not group.refused
    }
    read = webdataset.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False, empty_check=False, handler=lambda _: True)
    theirs = {sample.pop("__key__"): {k: v for k, v in sample.items() if k[0] != "_"} for sample in read}
    refused = {group.key for group in group_members(tmp_path / "0.tar") if group.refused}
    assert accepted == {key: members for key, members in theirs.items() if key not in refused}
    assert theirs.keys() <= accepted.keys() | refused


def test_every_sample_is_accepted_or_rejected_with_its_reason(tmp_path):
    good = {"jpg": encoded(), "json": b'{"species": 1}'}
    write_tar(
        tmp_path / "web/0.tar",
        [
            {"__key__": "good", **good},
            {"__key__": "unlabeled", "jpg": encoded()},
            {"__key__": "failed", "json": b"{}", "txt": b"gone"},
            {"__key__": "two", "png": encoded("PNG"), **good},
            {"__key__": "good", **good},
            {"__key__": "cut", **good, "jpg": encoded()[:-100]},
            {"__key__": "empty", **good, "jpg": b""},
            {"__key__": "unknown", **good, "json": b'{"species": 7}'},
            {"__key__": "odd", **good, "json": b'{"species": [1]}'},
            {"__key__": "broken", **good, "json": b"{"},
            {"__key__": "small", **good, "mask.png": mask((10, 8))},
            {"__key__": "wild", **good, "mask.png": mask(high=9)},
            {"__key__": "masked", **good, "mask.png": mask()},
        ],
    )
    for in_place in (True, False):
        given = source(
            tmp_path / "web", in_place=in_place, labels=MemberLabels("json", "species", ["cat", "dog"]),
            masks=MemberMasks("foreground", ["background", "animal"], "mask.png"),
        )  # fmt: skip
        reader = write(tmp_path / "set", given, max_rejects=0.99)
        assert {row["source"] for row in pq.read_table(tmp_path / "set/index.parquet").to_pylist()} == {
            "s0/0.tar/good.jpg", "s0/0.tar/unlabeled.jpg", "s0/0.tar/masked.jpg"
        }  # fmt: skip
        reasons = {
            "failed": "the sample has no image: its members are json, txt",
            "two": "the sample has several images: jpg, png",
            "good.jpg#2": "the key comes twice in its shard: good",
            "cut.jpg": "the image cannot be decoded",
            "empty.jpg": "the file is empty",
            "unknown.jpg": "the label has no name: 7, names are for 0 to 1",
            "odd.jpg": "the label is neither a number nor a text: [1]",
            "broken.jpg": "its json is broken",
            "small.jpg": "the mask and its upright image differ in size: 10x8 for 20x16",
            "wild.jpg": "the mask holds an index without a name: 8",
        }
        rejects = rejected(tmp_path / "set")
        assert rejects.keys() == {f"s0/0.tar/{name}" for name in reasons}
        assert all(rejects[f"s0/0.tar/{name}"].startswith(reason) for name, reason in reasons.items())
        assert len(reader) + len(rejects) == reader.meta["sources"]["s0"]["inputs"] == 13
        assert reader.class_names == ["cat", "dog"]


def test_a_key_in_two_shards_is_two_samples(web, tmp_path):
    write_tar(web / "00002.tar", [{"__key__": "000000000", "jpg": encoded()}])
    reader = write(tmp_path / "set", source(web))
    assert len(set(reader.keys)) == 10
    assert sorted(key.startswith("000000000-") for key in reader.keys) == [False] * 8 + [True] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": MemberLabels("json", "kind", None)},
            "no sample has a field 'kind' in its json, which `labels` expects; fields of the first json are: key",
        ),
        ({"labels": MemberLabels("cls", None, None)}, "no sample has a member .cls, which `labels` expects"),
        (
            {"masks": MemberMasks("parts", ["a", "b"], "mask.png")},
            "none of 9 images, e.g. 00000.tar/000000000.jpg, has a mask; the mask of the image <key>.* must be",
        ),
        ({"path": "nowhere"}, "nowhere is not a folder"),
        ({"shards": {"train": "*_stats.json"}}, "00000_stats.json cannot be read as a plain, uncompressed tar"),
    ],
)
def test_missing_data_are_named(changes, message, web):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(source(web), **changes).list_items(seed=0)


def test_a_shard_cut_short_is_named(web):
    data = (web / "00001.tar").read_bytes()
    (web / "00001.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"00001.tar cannot be read as a plain, uncompressed tar"):
        source(web).list_items(seed=0)


@pytest.mark.parametrize("shard", ["pipe:cat x.tar", "https://example.org/{0..9}.tar"])
def test_commands_and_urls_are_refused(shard, web):
    with pytest.raises(ValueError, match="pipe: commands and URLs are refused; expected a local path"):
        source(web, shards={"train": shard})


def test_images_that_are_indexed_in_place_cannot_be_reduced(web, tmp_path):
    with pytest.raises(ValueError, match="s0 is indexed in place, so its images cannot be reduced to short_side"):
        write(tmp_path / "set", source(web), short_side=16)
    assert write(tmp_path / "set", source(web, in_place=False), short_side=16).image(0).shape == (16, 20, 3)


def test_a_changed_shard_that_is_indexed_in_place_is_an_error(web, tmp_path):
    reader = write(tmp_path / "set", given := source(web, labels=SPECIES))
    assert shard_writer.changed_sources(tmp_path / "set", {"s0": given}) == []
    data = (web / "00000.tar").read_bytes()
    (web / "00000.tar").write_bytes(data.replace(b'"cat"', b'"dog"', 1))
    with pytest.raises(ValueError, match=r"00000.tar is damaged.* it is indexed in place: .*dvc repro -f shards@set"):
        verify_shards(tmp_path / "set")
    assert shard_writer.changed_sources(tmp_path / "set", {"s0": given}) == ["s0"]
    (web / "00000.tar").unlink()
    with pytest.raises(ValueError, match=r"web/00000.tar is missing; it is indexed in place"):
        verify_shards(tmp_path / "set")
    with pytest.raises(ValueError, match=r"00000.tar, sample 000000000: No such file"):
        reader.image(0)


def test_a_seeded_split_keeps_groups_together_and_rows_of_part_maps(web, tmp_path):
    """Both splits are in the same tars: rows of the part maps count samples of the tar, not of the split."""
    reader = write(tmp_path / "set", source(web, val_fraction=0.3, group="photographer"))
    splits = dict(zip(reader.keys, pq.read_table(tmp_path / "set/index.parquet")["split"].to_pylist(), strict=True))
    side = {}
    for key, split in splits.items():
        assert side.setdefault(f"p{int(key[-4:]) // 2}", split) == split
    assert set(side.values()) == {"train", "val"}
    assert reader.meta["shards"][0]["split"] is None
    metadata = {"grid": [1, 2], "num_parts": 3, "background": None, "teacher": "t", "parts": "p"}
    for shard in reader.meta["shards"]:
        rows = [i for i, name in enumerate(reader.shards) if name == shard["file"]]
        part_maps.write(
            tmp_path / "maps" / f"{Path(shard['file']).stem}.parquet", keys=[reader.keys[i] for i in rows],
            channels={"part_map": np.array([[i % 3, i % 2] for i in rows], np.uint8)},
            metadata=metadata | {"shard": shard["sha256"]},
        )  # fmt: skip
    for split in ("train", "val"):
        view = Reader(tmp_path / "set", split)
        joined = part_maps.join(tmp_path / "maps", view, teacher="t", parts="p")
        ids = [reader.keys.index(key) for key in view.keys]
        assert joined.channels["part_map"].tolist() == [[i % 3, i % 2] for i in ids]


def test_a_project_indexes_shards_in_place(inside: Project):
    """The pictures of the toy project as shards in data/raw, indexed in place; the command reports a change."""
    for split in ("train", "val"):
        samples = []
        for path in sorted(Path(f"data/raw/pictures/images/{split}").rglob("*.png")):
            label = draw.SPECIES.index(path.parent.name)
            outlines = Path(str(path).replace("/images/", "/masks/")).read_bytes()
            key = f"{path.parent.name}/{path.stem}"
            samples.append({"__key__": key, "png": path.read_bytes(), "cls": str(label).encode(), "mask.png": outlines})
        write_tar(Path(f"data/raw/web/{split}-0.tar"), samples)
    masks = {"member": "mask.png", "kind": "parts", "names": list(draw.PARTS)}
    given = {"kind": "webdataset", "path": "web", "in_place": True, "val_fraction": None, "masks": masks}
    given["labels"] = {"member": "cls", "field": None, "names": list(draw.SPECIES)}
    given["shards"] = {"train": "train-{0..0}.tar", "val": "val-*.tar"}
    inside.set("shards.datasets.toy.sources", {"web": given | {"weight": 1.5}})
    call("shards", "toy")
    call("part_maps")
    assert sorted(path.name for path in Path("data/part_maps/toy").iterdir()) == ["train-0.parquet", "val-0.parquet"]
    index = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["index", "toy", "--check"])
    assert "no source has changed" in index.output
    write_tar(Path("data/raw/web/val-0.tar"), samples[1:])
    index = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["index", "toy", "--check"])
    assert "sources changed: web; run: dvc repro -f shards@toy" in index.output
