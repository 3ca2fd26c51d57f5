"""CelebA: faces with five landmarks (Liu et al. 2015), by the protocol of SCOPS (Hung et al. 2019).

The images are those before alignment, whose face covers at least 30 % of the image. The images of MAFL are left out of
training. The regression of landmarks is fitted on the training images of MAFL (5,379), and its test images are scored
(283). If there are only aligned images, all of them are used, because each of them shows a face of the same size.
"""

from pathlib import Path

import numpy as np

from semmae.console.tracking import tracked
from semmae.evaluation.part_benchmarks.annotation_files import AnnotationFiles
from semmae.evaluation.part_benchmarks.benchmark import KeypointBenchmark, KeypointImages
from semmae.sharding.image_files import ImageFiles

LAYOUT = (
    "img_celeba with list_landmarks_celeba.txt and list_bbox_celeba.txt, or img_align_celeba with "
    "list_landmarks_align_celeba.txt; list_eval_partition.txt; MAFL/training.txt and MAFL/testing.txt. The files may "
    "lie in Img, Anno and Eval"
)
MIN_FACE = 0.3  # smallest share of the image that the box of the face covers
EYES = (0, 1)  # the first two landmarks
TRAIN = 0  # value in list_eval_partition.txt
LANDMARKS = (
    "image_id lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
)


def read_celeba(root: Path) -> KeypointBenchmark:
    """Read the benchmark in the layout of its authors.

    Args:
        root: The folder with the images and annotations, flat or as it is published (Img, Anno, Eval).

    Raises:
        ValueError: A file is missing or malformed.
    """
    files = AnnotationFiles(root, LAYOUT)
    folder = files.find("img_celeba", "Img/img_celeba", "img_align_celeba", "Img/img_align_celeba")
    is_aligned = folder.name == "img_align_celeba"
    path = _find(files, "Anno", f"list_landmarks_{'align_' if is_aligned else ''}celeba.txt")
    landmarks = files.table(path, LANDMARKS, header=2)
    boxes = None if is_aligned else _face_boxes(files)
    mafl = {
        name: [row[0] for row in files.rows(files.find(f"MAFL/{name}.txt", f"MAFL_{name}.txt"), "image_id")]
        for name in ("training", "testing")
    }
    partition = files.table(_find(files, "Eval", "list_eval_partition.txt"), "image_id partition")
    excluded = {key for keys in mafl.values() for key in keys}
    train = [key for key, (split,) in partition.items() if split == TRAIN and key not in excluded]

    def select(keys: list[str]) -> ImageFiles:
        images = ImageFiles(folder, keys)
        files.check_images(images)
        return images if boxes is None else _keep_large_faces(files, images, boxes)

    def keypoints(keys: list[str]) -> KeypointImages:
        images = select(keys)
        points = files.select(path, landmarks, images.keys).reshape(-1, 5, 2)
        return KeypointImages(images, points, np.ones(points.shape[:2], bool), scale_points=EYES)

    name = "celeba_aligned" if is_aligned else "celeba"
    return KeypointBenchmark(name, select(train), keypoints(mafl["training"]), keypoints(mafl["testing"]))


def _find(files: AnnotationFiles, folder: str, name: str) -> Path:
    """Find a file in the folder of the benchmark, or in its subfolder `folder`, where the authors publish it."""
    return files.find(name, f"{folder}/{name}")


def _face_boxes(files: AnnotationFiles) -> dict[str, np.ndarray]:
    return files.table(_find(files, "Anno", "list_bbox_celeba.txt"), "image_id x_1 y_1 width height", header=2)


def _keep_large_faces(files: AnnotationFiles, images: ImageFiles, boxes: dict[str, np.ndarray]) -> ImageFiles:
    """Keep the images whose face covers at least `MIN_FACE` of the image."""
    width, height = files.select(_find(files, "Anno", "list_bbox_celeba.txt"), boxes, images.keys)[:, 2:].T
    sizes = np.array(list(tracked(map(images.size, range(len(images))), len(images), "reading image sizes")))
    is_large = width * height >= MIN_FACE * sizes.prod(1)
    kept = ImageFiles(images.root, [images.keys[index] for index in np.flatnonzero(is_large)])
    files.check_images(kept)
    return kept
