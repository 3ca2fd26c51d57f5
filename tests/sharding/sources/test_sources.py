"""The inputs of a tree, their splits and classes, and tars with members that lead out of the tar."""

import io
import json
import os
import re
import tarfile
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from semmae.sharding.sources import sources
from semmae.sharding.sources.folder import find_inputs
from semmae.sharding.sources.sources import Creatures, FolderMasks, Tree


def tree(path: Path, kind: str = "folder", **changes) -> Tree:
    given = {"splits": None, "val_fraction": None, "labels": True, "masks": None, **changes}
    return Tree(kind=kind, path=str(path), **given)


def write_folder(root: Path, names: list[str]) -> Path:
    """A tree whose files contain their own names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def write_tar(path: Path, names: list[str], *special: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name.encode())
            tar.addfile(info, io.BytesIO(name.encode()))
        for info in special:
            tar.addfile(info)
    return path


LAYOUTS = {
    "split and class": (True, ["train/cat/1.jpg", "val/dog/x/2.jpg"], [("train", "cat"), ("val", "dog")]),
    "split": (False, ["test/1.jpg", "train/a/2.jpg"], [("test", None), ("train", None)]),
    "class": (True, ["cat/1.jpg", "dog/2.jpg"], [("train", "cat"), ("train", "dog")]),
    "flat": (False, ["1.jpg", "2.jpg"], [("train", None)] * 2),
    "flat, in folders": (False, ["a/1.jpg", "a/b/2.jpg"], [("train", None)] * 2),
    "images": (False, ["images/train/1.jpg", "images/val/2.jpg"], [("train", None), ("val", None)]),
    "images, no split": (False, ["images/1.jpg", "images/a/2.jpg"], [("train", None)] * 2),
    "images, split and class": (True, ["images/train/a/1.jpg", "images/val/b/2.jpg"], [("train", "a"), ("val", "b")]),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("kind", ["folder", "tar", "tar with one folder around all"])
def test_layouts(name, kind, tmp_path):
    labels, inputs, expected = LAYOUTS[name]
    papers = [".hidden.jpg", "._1.jpg", ".cache/1.jpg"] + (
        ["README.md"] if labels or name.startswith(("split", "images")) else []
    )
    base = "images/" if name.startswith("images") else ""
    masks = [f"masks/{Path(path.removeprefix(base)).with_suffix('.png')}" for path in inputs]
    files = [*inputs, *papers, *masks]
    if kind == "folder":
        path = write_folder(tmp_path / "set", files)
    elif kind == "tar":
        path = write_tar(tmp_path / "set.tar", files)
    else:
        path = write_tar(tmp_path / "set.tar", [f"./set/{file}" for file in files])
    with_masks = FolderMasks(folder="masks", kind="foreground", names=["background", "animal"])
    source = tree(path, kind.split()[0], labels=labels, masks=with_masks)
    found = source.list_items(seed=0)
    assert [entry.path for entry in found] == inputs
    assert [(entry.split, entry.label) for entry in found] == expected
    for entry, mask in zip(found, masks, strict=True):
        image_bytes, mask_bytes = source.fetch(entry)
        assert image_bytes.decode().endswith(entry.path)
        assert mask_bytes.decode().endswith(mask)
    assert all(entry.mask is None for entry in tree(path, kind.split()[0], labels=labels).list_items(seed=0))


def test_masks_may_lie_in_any_folder_and_may_be_missing():
    names = ["images/a.jpg", "images/b.jpg", "annotations/trimaps/a.png"]
    assert [file.mask for file in find_inputs(names, labels=False, masks="annotations/trimaps")] == [
        "annotations/trimaps/a.png",
        "annotations/trimaps/b.png",
    ]


def test_all_files_in_a_class_folder_are_inputs_other_files_above_are_not():
    names = ["train/cat/notes.txt", "train/cat/text.jpg", "train/stray.jpg", "train/notes.txt", "notes.txt", "a.jpg"]
    found = find_inputs(names, labels=True, masks="masks")
    assert {file.name: file.refused for file in found} == {
        "train/cat/notes.txt": "",
        "train/cat/text.jpg": "",
        "train/stray.jpg": "the file is in no class folder",
    }


def test_images_outside_of_the_split_folders_are_an_error():
    with pytest.raises(ValueError, match="there are images in bus, outside of the split folders train"):
        find_inputs(["bus/1.jpg", "train/2.jpg"], labels=True, masks="masks")


def test_val_fraction_is_exact_by_class_and_stable(tmp_path):
    names = [f"{label}/{i}.jpg" for label in ("cat", "dog") for i in range(40)]
    root = write_folder(tmp_path / "set", names)
    source = tree(root, val_fraction=0.25)

    def val(seed: int) -> set[str]:
        return {entry.path for entry in source.list_items(seed=seed) if entry.split == "val"}

    before = val(0)
    assert sorted(path.split("/")[0] for path in before) == ["cat"] * 10 + ["dog"] * 10
    assert before == val(0)
    assert before != val(1)
    write_folder(root, ["cat/40.jpg"])
    assert len(before ^ val(0)) <= 2
    write_folder(root, ["val/cat/1.jpg", "train/cat/1.jpg"])
    with pytest.raises(ValueError, match=r"outside of the split folders|val split of its own"):
        val(0)


def test_splits_select_and_an_empty_one_is_named(tmp_path):
    root = write_folder(tmp_path / "set", ["train/cat/1.jpg", "val/cat/2.jpg"])
    assert [entry.path for entry in tree(root, splits=["val"]).list_items(seed=0)] == ["val/cat/2.jpg"]
    with pytest.raises(ValueError, match="no images in split 'test'; it has train, val"):
        tree(root, splits=["train", "test"]).list_items(seed=0)


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (None, {}, "is not a folder"),
        (["README.md"], {}, "holds no files where images are expected"),
        (
            ["cat/1.jpg"],
            {"masks": FolderMasks(folder="m", kind="parts", names=["a", "b"])},
            "e.g. cat/1.jpg, has a mask in m/",
        ),
    ],
)
def test_a_source_without_inputs_is_an_error(names, changes, message, tmp_path):
    root = tmp_path / "set" if names is None else write_folder(tmp_path / "set", names)
    with pytest.raises(ValueError, match=message):
        tree(root, **changes).list_items(seed=0)


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_a_tar_cannot_reach_beyond_itself(tmp_path):
    (tmp_path / "secret.jpg").write_text("secret")
    path = write_tar(
        tmp_path / "set.tar",
        ["train/cat/1.jpg", "train/cat/2.jpg", "train/cat/../../../secret.jpg", "/etc/passwd", "train/cat/1.jpg"],
        special("train/cat/link.jpg", tarfile.SYMTYPE, str(tmp_path / "secret.jpg")),
        special("train/cat/hard.jpg", tarfile.LNKTYPE, "train/cat/1.jpg"),
        special("train/cat/device.jpg", tarfile.CHRTYPE),
        special("train/dog", tarfile.DIRTYPE),
    )
    source = tree(path, "tar")
    found = source.list_items(seed=0)
    refused = {entry.path: entry.refused for entry in found if entry.refused}
    assert set(refused) == {
        "/etc/passwd", "train/cat/../../../secret.jpg",
        "train/cat/link.jpg", "train/cat/hard.jpg", "train/cat/device.jpg",
    }  # fmt: skip
    for entry in found:
        if entry.refused:
            with pytest.raises(ValueError, match=r"leads out of the tar|special member"):
                source.fetch(entry)
        else:
            assert source.fetch(entry) == (entry.path.encode(), None)
    assert len(found) == len(refused) + 2


@pytest.mark.parametrize("damage", ["cut at a member", "cut in a member", "header", "compressed", "no tar"])
def test_a_damaged_tar_is_refused(damage, tmp_path):
    path = write_tar(tmp_path / "set.tar", [f"train/cat/{i}.jpg" for i in range(9)])
    data = bytearray(path.read_bytes())
    match damage:
        case "cut at a member":
            data = data[: 5 * 1024]
        case "cut in a member":
            data = data[: 5 * 1024 + 600]
        case "header":
            data[5 * 1024 + 3] ^= 1
        case "compressed":
            with tarfile.open(path, "w:gz") as tar:
                tar.addfile(tarfile.TarInfo("train/cat/1.jpg"))
            data = path.read_bytes()
        case "no tar":
            data = b"text"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"set.tar cannot be read as a plain, uncompressed tar"):
        tree(path, "tar").list_items(seed=0)


def test_odd_files_of_a_folder(tmp_path):
    root = write_folder(tmp_path / "set", ["cat/1.jpg"])
    (root / "cat/link.jpg").symlink_to(root / "cat/1.jpg")
    (root / "cat/broken.jpg").symlink_to(root / "nowhere")
    (root / "cat/loop").symlink_to(root)
    os.mkfifo(root / "cat/pipe.jpg")
    with open(os.fsencode(root) + b"/cat/\xff.jpg", "w"):
        pass
    found = {entry.path: entry for entry in tree(root).list_items(seed=0)}
    assert set(found) == {"cat/1.jpg", "cat/link.jpg", "cat/broken.jpg", "cat/pipe.jpg", "cat/\\xff.jpg"}
    assert found["cat/pipe.jpg"].refused == "not a regular file"
    assert found["cat/broken.jpg"].refused == "the file cannot be read: No such file or directory"
    assert tree(root).fetch(found["cat/link.jpg"])[0] == b"cat/1.jpg"
    assert tree(root).fetch(found["cat/\\xff.jpg"])[0] == b""


def documented() -> list[str]:
    """Return the complete sources in docs/data/sources.md: in one line, or as a block that begins with `kind`."""
    text = (Path(__file__).parents[3] / "docs/data/sources.md").read_text()
    lines = re.findall(r"^ +(\w+: \{kind: .*\})$", text, re.MULTILINE)
    blocks = re.findall(r"^    (\w+:\n      kind: .*\n(?:      .+\n)+)", text, re.MULTILINE)
    return [source for source in (*lines, *blocks) if "..." not in source]


@pytest.mark.parametrize("line", documented(), ids=lambda line: line.partition(" name")[0][:40])
def test_the_documented_sources_are_complete(line):
    ((_, given),) = YAML(typ="safe", pure=True).load(line).items()
    source = TypeAdapter(sources.AnySource).validate_json(json.dumps(given))
    assert source.kind == given["kind"]


def test_every_kind_is_documented():
    kinds = {YAML(typ="safe", pure=True).load(line).popitem()[1]["kind"] for line in documented()}
    assert kinds >= {"folder", "tar", "webdataset", "torchvision", "hf"}


def test_creatures_are_named_by_split_and_number():
    source = Creatures(kind="creatures", train=3, val=2, size=16, seed=0)
    found = source.list_items(seed=0)
    assert [entry.path for entry in found] == [
        "train-000000",
        "train-000001",
        "train-000002",
        "val-000000",
        "val-000001",
    ]
    assert {entry.label for entry in found} <= set(source.class_names(found))
    assert source.fetch(found[0]) == source.fetch(found[0])
