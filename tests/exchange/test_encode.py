"""Features in Parquet equal those of the evaluations; unreadable images are skipped, and a failure writes no file."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from semmae.cli.main import app
from semmae.data.dataset import Reader
from semmae.evaluation import features
from semmae.exchange import encode
from semmae.models import frozen_encoder, vit
from semmae.sharding.creatures import draw

CPU = torch.device("cpu")
COMPUTE = encode.EncodeOptions(batch_size=8, workers=0, device=CPU, precision="fp32")
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
CONFIG = SIZES | {"mean": vit.MEAN, "std": vit.STD}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return frozen_encoder.FrozenEncoder(vit.build(CONFIG).eval(), CONFIG, "digest")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Seven images in a tree of folders, with files that are no images or cannot be read."""
    root = tmp_path / "pictures"
    (root / "a/b").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for number in range(7):
        image, _, _ = draw.draw(0, f"train-{number:06d}", 32)
        cv2.imwrite(str(root / ("a/b" if number % 2 else "a") / f"{number}.png"), image[..., ::-1])
    (root / "broken.jpg").write_bytes(b"no image")
    for name in ("a/empty.png", "a/notes.txt", ".hidden/x.png"):
        (root / name).touch()
    (root / "a/b/gone.png").symlink_to("nowhere")
    (root / "a/loop").symlink_to("..")
    return root


def vectors(table: pa.Table, name: str) -> np.ndarray:
    return np.stack(table[name].to_numpy(zero_copy_only=False))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_gets_the_features_of_the_evaluations_and_its_labels(toy_dataset, encoder, tmp_path, workers):
    compute = encode.EncodeOptions(batch_size=8, workers=workers, device=CPU, precision="fp32")
    reader = encode.open_images(toy_dataset.name, toy_dataset.parent)
    assert encode.encode(reader, encoder, tmp_path / "f.parquet", compute) == []
    found = pq.read_table(tmp_path / "f.parquet")
    assert found.column_names == ["key", "split", "label", "class_token", "patch_mean"]
    assert found.schema.field("class_token").type == pa.list_(pa.float32(), 16)
    for split in ("train", "val"):
        of_split = found.filter(pa.compute.equal(found["split"], split))
        own = Reader(toy_dataset, split)
        assert of_split["key"].to_pylist() == own.keys
        assert of_split["label"].to_pylist() == own.labels.tolist()
        for pool, name in (("class", "class_token"), ("patch_mean", "patch_mean")):
            network = features.build_feature_encoder(encoder.network, pool=pool, device=CPU)
            expected = features.extract(network, own, img_size=32, batch_size=8, workers=0)
            np.testing.assert_allclose(vectors(of_split, name), expected, atol=1e-6)


def test_unreadable_images_of_a_folder_are_skipped(folder, encoder, tmp_path):
    reader = encode.open_images(str(folder), tmp_path)
    skipped = encode.encode(reader, encoder, tmp_path / "f.parquet", COMPUTE)
    assert [(entry.key, entry.reason.partition(":")[0]) for entry in skipped] == [
        ("a/b/gone.png", "No such file or directory"),
        ("a/empty.png", "the file is empty"),
        ("broken.jpg", "not a readable image"),
    ]
    found = pq.read_table(tmp_path / "f.parquet")
    assert found.column_names == ["key", "class_token", "patch_mean"]
    assert found["key"].to_pylist() == [*(f"a/{i}.png" for i in (0, 2, 4, 6)), *(f"a/b/{i}.png" for i in (1, 3, 5))]
    metadata = json.loads(pq.read_metadata(tmp_path / "f.parquet").metadata[b"semmae"])
    assert metadata["encoder"] == "digest"
    assert [entry["key"] for entry in metadata["skipped"]] == [entry.key for entry in skipped]


def test_a_photograph_is_turned_upright(encoder, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    (tmp_path / "upright").mkdir()
    (tmp_path / "turned").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "upright/x.png")
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(tmp_path / "turned/x.png", exif=exif)
    tables = []
    for name in ("upright", "turned"):
        encode.encode(encode.ImageFolder(tmp_path / name), encoder, tmp_path / f"{name}.parquet", COMPUTE)
        tables.append(pq.read_table(tmp_path / f"{name}.parquet"))
    assert tables[0].equals(tables[1])


def test_rows_are_written_in_full_groups(toy_dataset, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "ROW_GROUP", 16)
    encode.encode(Reader(toy_dataset), encoder, tmp_path / "f.parquet", COMPUTE)
    file = pq.ParquetFile(tmp_path / "f.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [16, 16, 16, 8]


@pytest.mark.parametrize("fault", ["unreadable", "not finite", "damaged dataset"])
def test_a_failure_keeps_the_previous_file(folder, encoder, tmp_path, toy_dataset, fault):
    out = tmp_path / "out/f.parquet"
    out.parent.mkdir()
    out.write_text("before")
    reader = encode.ImageFolder(folder)
    if fault == "unreadable":
        reader.keys = ["broken.jpg", "a/empty.png"]
    elif fault == "not finite":
        encoder.network.norm.bias.data[0] = torch.nan
    else:
        shutil.copytree(toy_dataset, tmp_path / "toy")
        next((tmp_path / "toy").glob("val-*.tar")).write_bytes(b"")
        reader = Reader(tmp_path / "toy")
    sentence = {"unreadable": "none of 2 images", "not finite": r"a/0\.png", "damaged dataset": "restore it"}[fault]
    with pytest.raises(ValueError, match=sentence):
        encode.encode(reader, encoder, out, COMPUTE)
    assert out.read_text() == "before"
    assert list(out.parent.iterdir()) == [out]


def test_an_unknown_folder_or_dataset_is_reported(toy_dataset, tmp_path):
    with pytest.raises(
        ValueError, match=r"nothing is neither a folder nor a dataset in .*; expected a folder, or one of: toy"
    ):
        encode.open_images("nothing", toy_dataset.parent)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        encode.open_images(str(tmp_path / "none"), toy_dataset.parent)
    assert isinstance(encode.open_images(str(toy_dataset), tmp_path), Reader)  # a dataset by its folder


def test_the_command_reports_skipped_images_and_succeeds(folder, encoder, tmp_path):
    vit.save(tmp_path / "encoder", encoder.network, CONFIG)
    out = ("--out", str(tmp_path / "f.parquet"), "--encoder", str(tmp_path / "encoder"), "--workers", "0")
    result = CliRunner().invoke(app, ["encode", str(folder), *out], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.strip() == f"{tmp_path / 'f.parquet'}: 7 images, width 16"
    lines = result.stderr.splitlines()
    assert "skipped: broken.jpg: not a readable image" in lines[-2]
    assert lines[-1] == "3 of 10 images skipped"
