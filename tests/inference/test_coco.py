"""Run-length encodings are those of pycocotools, and the annotations follow the format of COCO."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from semmae.data.crops import FULL_IMAGE, crop_part_map
from semmae.inference.coco import CocoWriter, describe_region, pack, run_lengths

NUMBER, NAME = {"type": "integer", "minimum": 1}, {"type": "string", "minLength": 1}
SCHEMA = {  # cocodataset.org/#format-data, object detection
    "type": "object",
    "required": ["images", "annotations", "categories"],
    "properties": {
        "images": {"items": {
            "required": ["id", "width", "height", "file_name"], "additionalProperties": False,
            "properties": {"id": NUMBER, "width": NUMBER, "height": NUMBER, "file_name": NAME},
        }},
        "annotations": {"items": {
            "required": ["id", "image_id", "category_id", "segmentation", "area", "bbox", "iscrowd"],
            "additionalProperties": False,
            "properties": {
                "id": NUMBER, "image_id": NUMBER, "category_id": NUMBER, "area": NUMBER, "iscrowd": {"enum": [0]},
                "bbox": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 4, "maxItems": 4},
                "segmentation": {
                    "required": ["size", "counts"],
                    "properties": {"size": {"items": NUMBER, "minItems": 2, "maxItems": 2}, "counts": NAME},
                },
            },
        }},
        "categories": {"items": {
            "required": ["id", "name"], "properties": {"id": NUMBER, "name": NAME, "supercategory": NAME},
        }},
    },
}  # fmt: skip


def unpack(text: str) -> list[int]:
    """Invert `pack`: the loop of `rleFrString` in pycocotools (maskApi.c)."""
    lengths: list[int] = []
    position = 0
    while position < len(text):
        number, group, more = 0, 0, True
        while more:
            bits = ord(text[position]) - 48
            number |= (bits & 0x1F) << 5 * group
            more = bool(bits & 0x20)
            position, group = position + 1, group + 1
            if not more and bits & 0x10:
                number |= -1 << 5 * group
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
    return lengths


def decode(segmentation: dict[str, Any]) -> np.ndarray:
    lengths = unpack(segmentation["counts"])
    values = np.arange(len(lengths)) % 2
    return np.repeat(values, lengths).astype(bool).reshape(segmentation["size"], order="F")


@pytest.mark.parametrize("largest", [2, 15, 16, 31, 1000, 40_000_000])
def test_packed_lengths_come_back(largest: int):
    lengths = np.random.default_rng(largest).integers(0, largest + 1, 300)
    assert unpack(pack(lengths)) == lengths.tolist()
    for few in range(1, 5):
        assert unpack(pack(lengths[:few])) == lengths[:few].tolist()


def test_runs_go_down_the_columns_and_start_outside():
    assert run_lengths(np.array([[1, 0], [1, 1]], bool)).tolist() == [0, 2, 1, 1]
    assert run_lengths(np.array([[0, 0], [1, 0]], bool)).tolist() == [1, 1, 2]


def test_a_region_comes_back_with_its_area_and_box():
    region = np.zeros((9, 12), bool)
    region[2:7, 3:8] = True
    region[4, 5] = False  # a hole
    described = describe_region(region)
    assert np.array_equal(decode(described["segmentation"]), region)
    assert described["area"] == 24
    assert described["bbox"] == [3, 2, 5, 5]


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """A file with two images of a grid of 3 x 4 patches and three parts, and their label images."""
    maps = [np.random.default_rng(seed).integers(0, 4, (3, 4), np.uint8) for seed in (0, 1)]
    sizes = [(31, 50), (12, 7)]
    writer = CocoWriter(tmp_path, ["part 0", "part 1", "part 2"])
    for number, (labels, size) in enumerate(zip(maps, sizes, strict=True)):
        writer.add(f"{number}.jpg", size, labels)
    writer.finish()
    images = [crop_part_map(labels, FULL_IMAGE, size) for labels, size in zip(maps, sizes, strict=True)]
    return tmp_path / "annotations.json", images


def test_the_file_follows_the_schema_and_holds_every_part(written):
    path, images = written
    content = json.loads(path.read_text())
    jsonschema.validate(content, SCHEMA)
    assert [category["name"] for category in content["categories"]] == ["part 0", "part 1", "part 2"]
    assert [(image["height"], image["width"]) for image in content["images"]] == [(31, 50), (12, 7)]
    assert len({annotation["id"] for annotation in content["annotations"]}) == len(content["annotations"])
    decoded = [np.full(image.shape, 3) for image in images]  # 3 is the background
    for annotation in content["annotations"]:
        region = decode(annotation["segmentation"])
        assert annotation["area"] == region.sum()
        decoded[annotation["image_id"] - 1][region] = annotation["category_id"] - 1
    assert all(np.array_equal(a, b) for a, b in zip(decoded, images, strict=True))


def test_pycocotools_reads_the_file(written):
    coco_module = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    path, images = written
    coco = coco_module.COCO(str(path))
    assert coco.getCatIds(catNms=["part 1"]) == [2]
    for number, image in enumerate(images, 1):
        for annotation in coco.imgToAnns[number]:
            region = np.asfortranarray(image == annotation["category_id"] - 1).astype(np.uint8)
            assert np.array_equal(coco.annToMask(annotation), region)
            assert coco_module.maskUtils.toBbox(coco.annToRLE(annotation)).tolist() == annotation["bbox"]
            packed = coco_module.maskUtils.encode(region)["counts"].decode()
            assert packed == annotation["segmentation"]["counts"]
