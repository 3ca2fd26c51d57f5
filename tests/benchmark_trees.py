"""Small copies of CUB-200-2011, CelebA and PartImageNet in the layout of their authors.

Every image shows a colored object on black. In CUB each keypoint lies in a region of its own color, and in PartImageNet
each part has its own color. So a labeling by color has perfect scores.
"""

import json
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = [(0, 0, 0), (250, 0, 0), (0, 250, 0), (0, 0, 250)]


def write_picture(path: Path, size: tuple[int, int], regions: dict[int, tuple[int, int, int, int]]) -> None:
    """Write a picture with some noise; `regions` are the x, y, width and height that have a color of `COLORS`."""
    noise = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 6, (size[1], size[0], 3))
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for color, (x, y, width, height) in regions.items():
        pixels[y : y + height, x : x + width] = COLORS[color]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels + noise.astype(np.uint8)).save(path, quality=100, subsampling=0)


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_cub(root: Path) -> None:
    """Six birds of 64 x 32 pixels, three of train. Of three keypoints, the third is hidden in every other image."""
    ids = range(1, 7)
    names = [f"{number:03d}.Bird/Bird_{number:04d}.jpg" for number in ids]
    locations, boxes = [], []
    for number, name in zip(ids, names, strict=True):
        shift = 4 * (number % 3)  # the bird moves to the right
        regions = {1: (shift, 0, 16, 16), 2: (shift + 16, 0, 16, 16), 3: (shift, 16, 32, 16)}
        write_picture(root / "images" / name, (64, 32), regions)
        visible = number % 2
        locations += [
            f"{number} 1 {shift + 8}.0 8.0 1", f"{number} 2 {shift + 24}.0 8.0 1",
            f"{number} 3 {(shift + 16) * visible}.0 {24 * visible}.0 {visible}",
        ]  # fmt: skip
        boxes.append(f"{number} {shift}.0 0.0 32.0 32.0")
    write_lines(root / "images.txt", *(f"{number} {name}" for number, name in zip(ids, names, strict=True)))
    write_lines(root / "image_class_labels.txt", *(f"{number} {number}" for number in ids))
    write_lines(root / "train_test_split.txt", *(f"{number} {int(number <= 3)}" for number in ids))
    write_lines(root / "bounding_boxes.txt", *boxes)
    write_lines(root / "parts/parts.txt", "1 back", "2 left eye", "3 tail")
    write_lines(root / "parts/part_locs.txt", *locations)


def write_celeba(root: Path, *, aligned: bool = False) -> None:
    """Eight faces of 64 x 64 pixels. 000002 is small; 5 and 6 are MAFL's training, 7 and 8 its test images."""
    kind, folder = ("align_", "img_align_celeba") if aligned else ("", "img_celeba")
    names = [f"{number:06d}.jpg" for number in range(1, 9)]
    landmarks, boxes = [], []
    for number, name in enumerate(names):
        regions = {1: (8, 8, 16, 16), 2: (32, 8, 16, 16), 3: (8, 32, 40, 24)}
        write_picture(root / f"Img/{folder}" / name, (64, 64), regions)
        landmarks.append(f"{name} {16 + number % 3} 16 40 16  28 40 20 50 40 50")
        side = 30 if number == 1 else 40  # 30² is 22 % of the image, 40² is 39 %
        boxes.append(f"{name}   4 4 {side} {side}")
    header = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
    write_lines(root / f"Anno/list_landmarks_{kind}celeba.txt", "8", header, *landmarks)
    write_lines(root / "Anno/list_bbox_celeba.txt", "8", "image_id x_1 y_1 width height", *boxes)
    write_lines(root / "Eval/list_eval_partition.txt", *(f"{name} {int(name == names[3])}" for name in names))
    write_lines(root / "MAFL/training.txt", *names[4:6])
    write_lines(root / "MAFL/testing.txt", *names[6:])


PARTS = {1: (0, 0, 16, 32), 2: (16, 0, 16, 16), 3: (16, 16, 16, 16)}  # x, y, width, height by color


def annotations(names: list[str], *, empty: int | None = None) -> dict:
    """COCO annotations of pictures of 64 x 32 pixels with `PARTS`; the image with index `empty` has none."""
    images = [{"id": i, "file_name": name, "width": 64, "height": 32} for i, name in enumerate(names)]
    parts = []
    for image in images:
        for color, (x, y, width, height) in PARTS.items() if image["id"] != empty else ():
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            if color == 3:
                corners = corners[:4]  # two corners, as in the published files; the box stands for them
            parts.append({
                "id": len(parts), "image_id": image["id"], "category_id": color - 1, "iscrowd": 0,
                "bbox": [x, y, width, height], "area": width * height, "segmentation": [corners],
            })  # fmt: skip
    categories = [{"id": i, "name": name, "supercategory": "Car"} for i, name in enumerate(("Body", "Tier", "Mirror"))]
    return {"images": images, "annotations": parts, "categories": categories}


def write_part_imagenet_ood(root: Path) -> None:
    """Five images; the third has no annotation, the last two are of test."""
    names = [f"n0000000{i % 2}_{i}.JPEG" for i in range(5)]
    for name in names:
        write_picture(root / "train" / name.split("_")[0] / name, (64, 32), PARTS)
    write_lines(root / "train.json", json.dumps(annotations(names, empty=2)))
    rows = [f"{i}\t{int(i > 2)}\t0\t{name.split('_')[0]}\t{name}" for i, name in enumerate(names)]
    write_lines(root / "train_test_split_pimagenet_ood.txt", *rows)


def write_part_imagenet_seg(root: Path) -> None:
    """One image of train, one of val and two of test."""
    for split, count in (("train", 1), ("val", 1), ("test", 2)):
        names = [f"n00000001_{split}{i}.JPEG" for i in range(count)]
        for name in names:
            write_picture(root / "images" / split / name, (64, 32), PARTS)
        write_lines(root / f"annotations/{split}/{split}.json", json.dumps(annotations(names)))
