"""Exported part maps are those of `map_parts`; every file has a part map or a reason, and nothing is half-written."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import semmae
from semmae.cli.main import app
from semmae.exchange.encode import EncodeOptions, open_images
from semmae.inference import part_export, part_formats
from semmae.inference.part_export import ExportOptions, export_parts, file_names
from semmae.inference.part_mapper import PartLabels, PartMapper
from semmae.parts import part_maps

COMPUTE = EncodeOptions(batch_size=2, workers=0, device=torch.device("cpu"), precision="fp32")


def options(file_format: part_formats.PartFormat = "png", num_overlays: int | None = None) -> ExportOptions:
    return ExportOptions(file_format, "okabe_ito", num_overlays, COMPUTE)


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def photos(project: Path, tmp_path: Path) -> Path:
    """The photographs of the project, one of them in a subfolder, with files that cannot be read."""
    root = tmp_path / "photos"
    shutil.copytree(project / "photos", root)
    (root / "sub").mkdir()
    (root / "2.jpg").rename(root / "sub/2.jpg")
    (root / "broken.jpg").write_text("text")
    (root / "sub/empty.png").touch()
    (root / "IMG_1.heic").touch()
    return root


@pytest.fixture
def expected(photos: Path, mapper: PartMapper) -> PartLabels:
    return semmae.map_parts([photos / "0.jpg", photos / "1.jpg", photos / "sub/2.jpg"], mapper)


def test_label_images_have_the_labels_at_the_size_of_the_images(photos, mapper, expected, tmp_path):
    out = tmp_path / "out"
    export_parts(open_images(str(photos), tmp_path), mapper, out, options())
    legend = table(out / "legend.csv")
    assert [row["name"] for row in legend] == mapper.names
    colors = np.array([list(bytes.fromhex(row["color"][1:])) for row in legend])
    for index, name in enumerate(("0", "1", "sub/2")):
        image = Image.open(out / f"labels/{name}.png")
        assert image.mode == "P"
        assert np.array_equal(np.array(image), expected.label_image(index))
        assert np.array_equal(np.array(image.convert("RGB")), colors[expected.label_image(index)])
        assert Image.open(out / f"overlays/{name}.jpg").size == image.size
    assert Image.open(out / "legend.png").height > 4 * 168


def test_every_file_is_in_the_table_of_sizes_or_has_a_reason(photos, mapper, expected, tmp_path):
    out = tmp_path / "out"
    skipped = export_parts(open_images(str(photos), tmp_path), mapper, out, options())
    sizes, reasons = table(out / "sizes.csv"), table(out / "skipped.csv")
    assert [row["image"] for row in sizes] == ["0.jpg", "1.jpg", "sub/2.jpg"]
    assert [(int(row["height"]), int(row["width"])) for row in sizes] == expected.sizes
    shares = [[float(row[name]) for name in mapper.names] for row in sizes]
    np.testing.assert_allclose(shares, expected.shares, atol=1e-4)
    assert [row["file"] for row in reasons] == [entry.key for entry in skipped]
    assert {row["file"]: row["reason"].partition(":")[0] for row in reasons} == {
        "IMG_1.heic": "the extension is none of .jpg, .jpeg, .png, .webp, .gif, .bmp, .tif, .tiff",
        "broken.jpg": "not a readable image",
        "sub/empty.png": "the file is empty",
    }
    files = {str(file.relative_to(photos)) for file in photos.rglob("*") if file.is_file()}
    assert files == {row["image"] for row in sizes} | {row["file"] for row in reasons}


@pytest.mark.parametrize("file_format", ["npz", "parquet"])
def test_arrays_hold_the_labels(file_format, photos, mapper, expected, tmp_path):
    out = tmp_path / "out"
    export_parts(open_images(str(photos), tmp_path), mapper, out, options(file_format))
    keys = ["0.jpg", "1.jpg", "sub/2.jpg"]
    if file_format == "npz":
        arrays = np.load(out / "part_maps.npz")
        assert arrays["keys"].tolist() == keys
        assert arrays["names"].tolist() == mapper.names
        assert list(map(tuple, arrays["sizes"])) == expected.sizes
        assert np.array_equal(arrays["labels"], expected.labels)
    else:
        maps = part_maps.read(out / "part_maps.parquet")
        assert maps.keys == keys
        assert (maps.grid, maps.metadata["num_parts"], maps.metadata["background"]) == ((8, 8), 3, 3)
        assert np.array_equal(maps.channels["part_map"].reshape(3, 8, 8), expected.labels)


def test_names_that_are_not_utf8_are_escaped(mapper, tmp_path):
    for file_format in ("npz", "parquet"):
        writer = part_formats.ArrayWriter(tmp_path / f"part_maps.{file_format}", mapper)
        writer.add("\udcff.jpg", (9, 9), np.zeros((8, 8), np.uint8))
        writer.finish()
    assert part_maps.read(tmp_path / "part_maps.parquet").keys == ["\\xff.jpg"]
    assert np.load(tmp_path / "part_maps.npz")["keys"].tolist() == ["\\xff.jpg"]


def test_a_dataset_is_exported_to_coco(project, mapper, tmp_path):
    reader = open_images("main", project / "data/shards")
    assert export_parts(reader, mapper, tmp_path / "out", options("coco", num_overlays=5)) == []
    content = json.loads((tmp_path / "out/annotations.json").read_text())
    assert [image["file_name"] for image in content["images"]] == reader.keys
    areas = np.zeros((len(reader), 4))
    for annotation in content["annotations"]:
        areas[annotation["image_id"] - 1, annotation["category_id"] - 1] = annotation["area"] / 32**2
    np.testing.assert_allclose(areas[:, :3], semmae.map_parts(reader, mapper).shares[:, :3])
    assert len(list((tmp_path / "out/overlays").iterdir())) == 5


def test_names_of_files_differ_between_images():
    assert file_names(["a.jpg", "b/a.jpg"]) == {"a.jpg": "a", "b/a.jpg": "b/a"}
    assert file_names(["a.jpg", "a.png", "b.png"]) == {"a.jpg": "a.jpg", "a.png": "a.png", "b.png": "b.png"}


def test_overlays_are_spread_over_the_images():
    assert part_export._spread(10, 3) == {1, 5, 8}
    assert part_export._spread(3, 0) == set()
    assert part_export._spread(3, 5) == part_export._spread(3, None) == {0, 1, 2}


def test_the_folder_must_be_empty_and_outside_of_the_images(photos, mapper, tmp_path):
    images = open_images(str(photos), tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with pytest.raises(ValueError, match="full exists and is not an empty folder; choose another folder with --out"):
        export_parts(images, mapper, tmp_path / "full", options())
    with pytest.raises(ValueError, match="is inside the folder of images; expected a folder outside of"):
        export_parts(images, mapper, photos / "parts", options())


@pytest.mark.parametrize("fault", ["unreadable", "interrupted"])
def test_a_failure_writes_nothing(fault, photos, mapper, tmp_path, monkeypatch):
    images, out = open_images(str(photos), tmp_path), tmp_path / "new/out"
    if fault == "unreadable":
        images.keys = ["broken.jpg", "sub/empty.png"]
        with pytest.raises(ValueError, match=r"none of 2 images can be read; sub/empty\.png: the file is empty"):
            export_parts(images, mapper, out, options())
    else:
        monkeypatch.setattr(part_export, "draw_legend", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export_parts(images, mapper, out, options())
    assert list(out.parent.iterdir()) == []


def test_the_command_reports_skipped_files(project, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    command = ["export-parts", str(photos), "--out", str(tmp_path / "out"), "--as", "npz", "--overlays", "0"]
    result = CliRunner().invoke(app, [*command, "--workers", "0", "--device", "cpu"], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == f"{tmp_path / 'out'}: 3 images, 4 labels, see legend.png"
    assert "skipped 1, because not a readable image: e.g. broken.jpg" in result.stderr
    assert f"all 3 skipped files with their reasons: {tmp_path / 'out/skipped.csv'}" in result.stderr
    assert not (tmp_path / "out/overlays").exists()
