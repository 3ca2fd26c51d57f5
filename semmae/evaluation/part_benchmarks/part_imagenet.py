"""PartImageNet: part segmentations of 158 classes of ImageNet in 11 groups (He et al. 2022).

Two releases of the data set serve as benchmarks. Both are scored on whole images of all classes together, by the
protocol of PDiscoFormer (Aniraj et al. 2024):

- `ood`: The classes of its train.json, test.json and val.json are disjoint. So train.json is split at random. The split
  that published scores use is the file train_test_split_pimagenet_ood.txt of PDiscoFormer (1,658 test images).
- `seg`: Parts are fitted on train and val, and scored on test (2,405 images).
"""

from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from semmae.evaluation.part_benchmarks.annotation_files import AnnotationFiles
from semmae.evaluation.part_benchmarks.benchmark import Polygon, PolygonBenchmark, PolygonImages
from semmae.sharding.image_files import ImageFiles

PartImageNetSplit = Literal["ood", "seg"]
SPLIT_FILE = "train_test_split_pimagenet_ood.txt"
LAYOUTS: dict[PartImageNetSplit, str] = {
    "ood": f"train.json and train/<synset>/<image>.JPEG of PartImageNet_OOD, and {SPLIT_FILE} of PDiscoFormer",
    "seg": "annotations/<split>/<split>.json and images/<split>/<image>.JPEG of PartImageNet_Seg for the splits train, "
    "val and test",
}


def read_part_imagenet(root: Path, split: PartImageNetSplit) -> PolygonBenchmark:
    """Read the benchmark in the layout of its authors.

    Args:
        root: The folder of the release.
        split: The release.

    Raises:
        ValueError: A file is missing or malformed.
    """
    files = AnnotationFiles(root, LAYOUTS[split])
    train, test = _read_ood(files) if split == "ood" else _read_seg(files)
    return PolygonBenchmark(f"part_imagenet_{split}", train, test)


def _read_ood(files: AnnotationFiles) -> tuple[ImageFiles, PolygonImages]:
    path = files.find("train.json")
    content = _read_annotations(files, path)
    # image_id, is_test, index of the class, synset and file name, without a header
    split = files.rows(files.find(SPLIT_FILE), "image_id is_test label synset image_name")
    is_test = {row[4]: row[1] == "1" for row in split}
    if missing := [image["file_name"] for image in content["images"] if Path(image["file_name"]).name not in is_test]:
        raise files.error(files.root / SPLIT_FILE, f"no line for {missing[0]} of {path}")
    images: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for image in content["images"]:
        images[is_test[Path(image["file_name"]).name]].append(image)
    folder = files.find("train")
    train = _to_polygon_images(files, path, folder, content, images[False]).images
    return train, _to_polygon_images(files, path, folder, content, images[True])


def _read_seg(files: AnnotationFiles) -> tuple[ImageFiles, PolygonImages]:
    images = {}
    for split in ("train", "val", "test"):
        path = files.find(f"annotations/{split}/{split}.json")
        content = _read_annotations(files, path)
        images[split] = _to_polygon_images(files, path, files.find(f"images/{split}"), content, content["images"])
    train = [
        str((images[split].images.root / key).relative_to(files.root))
        for split in ("train", "val")
        for key in images[split].images.keys
    ]
    return ImageFiles(files.root, train), images["test"]


def _read_annotations(files: AnnotationFiles, path: Path) -> dict[str, Any]:
    """Read a file of COCO annotations and check the keys that are used.

    Raises:
        ValueError: An entry lacks a key.
    """
    content = files.json(path, "images", "annotations", "categories")
    keys = {
        "images": ("id", "file_name", "width", "height"),
        "annotations": ("image_id", "category_id", "segmentation"),
        "categories": ("id", "name"),
    }
    for name, required in keys.items():
        for entry in content[name]:
            if missing := [key for key in required if key not in entry]:
                raise files.error(path, f"an entry of {name} has no {missing[0]!r}")
    return content


def _to_polygon_images(
    files: AnnotationFiles, path: Path, folder: Path, content: dict[str, Any], images: list[dict[str, Any]]
) -> PolygonImages:
    """Collect the images that have a part, and their parts in the order of their categories."""
    category_ids = sorted(category["id"] for category in content["categories"])
    labels = {category: label for label, category in enumerate(category_ids, 1)}
    parts: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        if annotation.get("area", 1) > 0 and not annotation.get("iscrowd", 0):
            if annotation["category_id"] not in labels:
                raise files.error(path, f"an annotation has the unknown category {annotation['category_id']}")
            parts[annotation["image_id"]].append(annotation)
    keys, polygons = [], []
    for image in images:
        if regions := sorted(parts[image["id"]], key=lambda region: labels[region["category_id"]]):
            size = np.array([image["width"], image["height"]])
            keys.append(_image_key(folder, image["file_name"]))
            polygons.append([
                Polygon(labels[region["category_id"]], corners / size)
                for region in regions
                for corners in _corners(files, path, region)
            ])  # fmt: skip
    found = ImageFiles(folder, keys)
    files.check_images(found)
    return PolygonImages(found, polygons, num_classes=1 + len(labels))


def _image_key(folder: Path, name: str) -> str:
    """Return the path of an image below `folder`, which may have a folder per synset (the prefix of the name)."""
    nested = f"{name.split('_')[0]}/{name}"
    return nested if "/" not in name and (folder / nested).exists() else name


def _corners(files: AnnotationFiles, path: Path, region: dict[str, Any]) -> list[np.ndarray]:
    """Return the corners of each polygon of a part, in pixels.

    Some segmentations hold two corners only. As in PDiscoFormer, their bounding box stands for them.
    """
    segmentation = region["segmentation"]
    if not isinstance(segmentation, list):
        raise files.error(path, "a segmentation is not a list of polygons")
    polygons = []
    for flat in segmentation:
        if len(flat) == 4:
            x, y, width, height = region["bbox"]
            flat = [x, y, x, y + height, x + width, y + height, x + width, y]
        try:
            polygons.append(np.array(flat, dtype=np.float64).reshape(-1, 2))
        except (TypeError, ValueError):
            raise files.error(path, f"a polygon of image {region['image_id']} is not a list of x and y") from None
    return polygons
