"""The store computes the part maps of a shard once, never returns damaged ones, and is pruned by last use."""

import os
import shutil
import time

import pyarrow.parquet as pq
import pytest
from PIL import Image

from semmae.core.paths import state_root
from semmae.parts import part_maps, part_store
from semmae.project.stage_code import closure
from tests.parts.example_maps import MADE_BY, dataset, fill, write


def test_a_changed_image_recomputes_one_shard(images, tmp_path):
    assert len(fill(dataset(images), tmp_path / "maps")) == 4
    assert fill(dataset(images), tmp_path / "maps") == []
    Image.new("RGB", (6, 6), (255, 0, 0)).save(images / "train" / "07.png")
    reader = dataset(images)
    changed = reader.shards[next(i for i, key in enumerate(reader.keys) if "07" in key)]
    assert fill(reader, tmp_path / "maps") == [changed]
    part_maps.join(tmp_path / "maps", reader, **MADE_BY)
    assert part_store.list_entries()[0].num_shards == 5


def test_the_digest_of_a_store_entry_depends_on_teacher_parts_and_params():
    base = {"teacher": "t", "parts": "p", "params": {"grid": [14, 14], "attention": True}}
    digest = part_store.store_digest(**base)
    assert digest == part_store.store_digest(**base)
    for change in ({"teacher": "u"}, {"parts": "q"}, {"params": {"grid": [28, 28], "attention": True}}):
        assert part_store.store_digest(**(base | change)) != digest


@pytest.mark.parametrize(
    ("file", "edit", "changes"),
    [
        ("semmae/parts/part_learner.py", "EDITED = 1", True),
        ("stages/part_maps.py", "EDITED = 1", True),
        ("semmae/parts/part_learner.py", "# a comment", False),
        ("semmae/console/progress.py", "EDITED = 1", False),
        ("semmae/parts/part_store.py", "EDITED = 1", False),
    ],
)
def test_only_an_edit_of_code_that_decides_labels_changes_the_digest(tmp_path, monkeypatch, file, edit, changes):
    base = {"teacher": "t", "parts": "p", "params": {}}
    for folder in ("semmae", "stages"):
        shutil.copytree(part_store.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    digest = part_store.store_digest(**base)
    monkeypatch.setattr(part_store, "ROOT", tmp_path)
    assert part_store.store_digest(**base) == digest
    with open(tmp_path / file, "a") as source:
        source.write(f"\n{edit}\n")
    assert (part_store.store_digest(**base) != digest) == changes


def test_a_docstring_does_not_change_the_label_sources(tmp_path):
    digests = []
    for docstring in ('"""Old."""', '"""New."""'):
        for module in part_store.LABEL_MODULES:
            path = tmp_path / f"{module.replace('.', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{docstring}\n\n\ndef f():\n    {docstring}\n    return 1\n")
        digests.append(part_store.label_source_digest(tmp_path))
    assert digests[0] == digests[1]


def test_every_imported_model_part_and_image_module_is_a_label_source_or_known_to_be_none():
    """A module that the stage begins to import must be added to `LABEL_MODULES`, or here with a reason."""
    no_labels = {
        "semmae.data.dataset",  # reads bytes by key; `join` verifies the keys
        "semmae.data.loader",  # order and processes
        "semmae.data.sample_table",
        "semmae.data.epoch_order",  # order of training
        "semmae.parts.style_decoder",  # training only
        "semmae.parts.image_information",  # training only
        "semmae.parts.spherical_kmeans",  # fitting only
        "semmae.models.pretrained_weights",  # the teacher stage reads them
        "semmae.parts.part_store",  # where files are, not what is in them
    }
    imported = {
        ".".join(path.relative_to(part_store.ROOT).with_suffix("").parts)
        for path in closure(part_store.ROOT / "stages/part_maps.py")
        if path.name != "__init__.py"
    }
    relevant = {name for name in imported if name.split(".")[1] in ("data", "models", "parts", "part_maps")}
    assert relevant - no_labels == set(part_store.LABEL_MODULES)


@pytest.mark.parametrize("damage", ["half", "flipped", "row missing", "interrupted"])
def test_a_damaged_file_is_recomputed(images, tmp_path, damage):
    reader = dataset(images)
    fill(reader, tmp_path / "maps")
    entry = reader.meta["shards"][1]
    path = part_store.store_path(part_store.store_digest(**MADE_BY, params={}), entry["sha256"])
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


def test_two_writers_of_one_file_do_not_interfere(tmp_path, monkeypatch):
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


def test_the_output_is_a_copy_and_replaced_as_a_whole(images, tmp_path):
    reader, out = dataset(images), tmp_path / "maps"
    fill(reader, out)
    digest = part_store.store_digest(**MADE_BY, params={})
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert all(path.stat().st_nlink == 1 and not path.is_symlink() for path in out.iterdir())
    with pytest.raises(FileNotFoundError):
        part_store.assemble(out, digest=digest, shards={"train-000000.tar": "no such shard"})
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    part_store.assemble(out, digest=digest, shards={"train-000000.tar": reader.meta["shards"][0]["sha256"]})
    assert [path.name for path in out.iterdir()] == ["train-000000.parquet"]  # no file of the old output remains


def test_the_store_is_listed_and_pruned_by_last_use(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMMAE_STATE", str(tmp_path / "pruned"))  # this test deletes all entries of the store
    for digest, shard, days in [("old", "a", 40), ("old", "b", 50), ("mixed", "a", 1), ("mixed", "b", 40)]:
        path = part_store.store_path(digest, shard)
        write(path, ["x"])
        os.utime(path, (time.time() - days * 86_400,) * 2)
    size = path.stat().st_size
    remains = path.with_name(".c.parquet.99.tmp")
    remains.write_bytes(b"half")
    os.utime(remains, (0, 0))
    assert [(entry.digest, entry.num_shards, entry.num_bytes) for entry in part_store.list_entries()] == [
        ("mixed", 2, 2 * size), ("old", 2, 2 * size),
    ]  # fmt: skip
    assert part_store.prune(unused_days=30.0) == 3 * size + 4
    assert [(entry.digest, entry.num_shards) for entry in part_store.list_entries()] == [("mixed", 1)]
    assert part_store.prune(unused_days=0.0) == size
    assert part_store.list_entries() == []
    assert list((state_root() / "part_maps").iterdir()) == []


def test_prune_keeps_used_files(images, tmp_path):
    reader = dataset(images)
    fill(reader, tmp_path / "maps")
    for path in (state_root() / "part_maps").glob("*/*"):
        os.utime(path, (0, 0))
    fill(reader, tmp_path / "maps")
    assert part_store.prune(unused_days=1.0) == 0
