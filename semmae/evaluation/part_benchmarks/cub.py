"""CUB-200-2011: birds with 15 keypoints and a bounding box (Wah et al. 2011).

Parts are fitted on the 5,994 training images and scored on the 5,794 test images, whole images in both cases. This is
the protocol of PDiscoNet, PDiscoFormer and MPAE.
"""

from pathlib import Path

import numpy as np

from semmae.evaluation.part_benchmarks.annotation_files import AnnotationFiles
from semmae.evaluation.part_benchmarks.benchmark import KeypointBenchmark, KeypointImages
from semmae.sharding.image_files import ImageFiles

LAYOUT = (
    "the folder CUB_200_2011 with images.txt, train_test_split.txt, bounding_boxes.txt, parts/parts.txt, "
    "parts/part_locs.txt and images/<class>/<image>.jpg"
)


def read_cub(root: Path) -> KeypointBenchmark:
    """Read the benchmark in the layout of its authors.

    Args:
        root: The folder CUB_200_2011.

    Raises:
        ValueError: A file is missing or malformed.
    """
    files = AnnotationFiles(root, LAYOUT)
    names = dict(files.rows(files.find("images.txt"), "image_id image_name"))
    ids = list(names)
    boxes = _per_image(files, "bounding_boxes.txt", "image_id x y width height", ids)
    if (boxes[:, 2:] <= 0).any():
        raise files.error(root / "bounding_boxes.txt", "a width or a height is not positive")
    is_train = _per_image(files, "train_test_split.txt", "image_id is_training_image", ids)[:, 0] == 1
    parts = files.rows(files.find("parts/parts.txt"), "part_id part_name")
    path = files.find("parts/part_locs.txt")
    rows = files.rows(path, "image_id part_id x y visible")
    values = files.numbers(path, [row[2:] for row in rows])
    locations = {f"{row[0]} {row[1]}": value for row, value in zip(rows, values, strict=True)}
    pairs = [f"{image} {part}" for image in ids for part, _ in parts]  # image_id and part_id
    keypoints = files.select(path, locations, pairs).reshape(len(ids), len(parts), 3)

    def split(chosen: np.ndarray) -> KeypointImages:
        images = ImageFiles(root / "images", [names[ids[index]] for index in np.flatnonzero(chosen)])
        files.check_images(images)
        return KeypointImages(images, keypoints[chosen, :, :2], keypoints[chosen, :, 2] == 1, boxes[chosen])

    train = split(is_train)
    return KeypointBenchmark("cub", train.images, train, split(~is_train))


def _per_image(files: AnnotationFiles, name: str, fields: str, ids: list[str]) -> np.ndarray:
    path = files.find(name)
    return files.select(path, files.table(path, fields), ids)
