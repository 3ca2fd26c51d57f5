"""Label the images of a part benchmark and compute its scores."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from semmae.console.tracking import tracked
from semmae.data.crops import FULL_IMAGE
from semmae.data.loader import batches
from semmae.data.transforms import load_crop
from semmae.evaluation.part_benchmarks.benchmark import (
    KeypointBenchmark,
    KeypointImages,
    PartBenchmark,
    PolygonBenchmark,
)
from semmae.evaluation.part_benchmarks.keypoint_scores import (
    KeypointRows,
    in_boxes,
    keypoint_error,
    labels_at,
    part_centers,
)
from semmae.evaluation.part_metrics import ari, nmi
from semmae.parts.part_method import PartMethod
from semmae.sharding.image_files import ImageFiles


@dataclass(frozen=True)
class PartLabeling:
    """How images are labeled.

    Attributes:
        assign: Returns the share of every label in each patch, for images that are resized to a square.
        method: The part method, for the size of these squares, the grid of patches and the number of labels.
        batch_size: Images per call of `assign`.
        workers: Processes that load images; 0: this process.
    """

    assign: Callable[[UInt8[Tensor, "b 3 s s"]], Float[Tensor, "b p n"]]
    method: PartMethod
    batch_size: int
    workers: int

    def maps(self, images: ImageFiles, name: str) -> Iterator[tuple[int, tuple[int, int], Float[Tensor, "p h w"]]]:
        """Yield the index, the height and width, and the shares of all labels for each image, and show the progress."""

        def load() -> Iterator[tuple[int, tuple[int, int], Tensor]]:
            view, indices = _SquareView(self.method.config["img_size"]), np.arange(len(images))
            for batch in batches(images, indices, view, batch_size=self.batch_size, workers=self.workers):
                maps = self.assign(batch["image"]).float().unflatten(2, self.method.grid)
                yield from zip(batch["index"].tolist(), map(tuple, batch["size"].tolist()), maps, strict=True)

        return tracked(load(), len(images), name)


@dataclass(frozen=True)
class _SquareView:
    """The whole image, resized to a square, with its index and size."""

    img_size: int

    def __call__(self, images: ImageFiles, index: int) -> dict[str, Any]:
        image = load_crop(images, index, FULL_IMAGE, self.img_size)
        return {"image": image, "index": np.array(index), "size": np.array(images.size(index))}


def score(benchmark: PartBenchmark, labeling: PartLabeling) -> dict[str, float]:
    """Compute the scores of a benchmark with keypoints or polygons."""
    if isinstance(benchmark, KeypointBenchmark):
        return score_keypoints(benchmark, labeling)
    return score_polygons(benchmark, labeling)


def score_keypoints(benchmark: KeypointBenchmark, labeling: PartLabeling) -> dict[str, float]:
    """Score parts on keypoints.

    Returns:
        - `nmi`, `ari`: Agreement of the label at each visible keypoint with the name of the keypoint, over all test
          images (Choudhury et al. 2021). Labels of the background count as one more label.
        - `keypoint_error`: See `keypoint_error`.
    """
    table = np.zeros((labeling.method.num_labels, benchmark.test.points.shape[1]), np.int64)
    fit = _keypoint_rows(benchmark.fit, labeling, "labeling images for the regression", table=None)
    test = _keypoint_rows(benchmark.test, labeling, "labeling test images", table=table)
    return {"nmi": nmi(table), "ari": ari(table), "keypoint_error": keypoint_error(fit, test)}


def _keypoint_rows(
    keypoints: KeypointImages, labeling: PartLabeling, name: str, *, table: np.ndarray | None
) -> KeypointRows:
    """Compute the rows of the regression; count the labels at the visible keypoints in `table`, unless it is None."""
    count = len(keypoints.images)
    sizes, centers = np.zeros((count, 1, 2)), np.zeros((count, labeling.method.num_parts, 2))
    for index, (height, width), maps in labeling.maps(keypoints.images, name):
        sizes[index] = width, height
        centers[index] = part_centers(maps.argmax(0).cpu().numpy(), labeling.method.num_parts)
        if table is not None:
            visible = np.flatnonzero(keypoints.visible[index])
            labels = labels_at(maps, keypoints.points[index, visible] / sizes[index])
            np.add.at(table, (labels, visible), 1)
    centers, points = centers * sizes, keypoints.points
    boxes = np.concatenate([np.zeros((count, 2)), sizes[:, 0]], axis=1) if keypoints.boxes is None else keypoints.boxes
    centers, points, scale = in_boxes(centers, boxes), in_boxes(points, boxes), np.ones(count)
    if keypoints.scale_points is not None:
        first, second = keypoints.scale_points
        scale = np.linalg.norm(points[:, first] - points[:, second], axis=1)
    return KeypointRows(centers, points, keypoints.visible, scale)


def score_polygons(benchmark: PolygonBenchmark, labeling: PartLabeling) -> dict[str, float]:
    """Score parts on segmented parts, at the size of the images for the teacher.

    The label of a pixel is the argmax of the bilinear interpolation of the shares of all labels.

    Returns:
        - `nmi`, `ari`: Agreement of the labels with the true parts and the background, over all pixels of all test
          images, as PDiscoFormer computes them.
        - `nmi_object`, `ari_object`: The same over the pixels inside the objects.
    """
    table = np.zeros((labeling.method.num_labels, benchmark.test.num_classes), np.int64)
    side = labeling.method.config["img_size"]
    for index, _, maps in labeling.maps(benchmark.test.images, "labeling test images"):
        labels = F.interpolate(maps[None], (side, side), mode="bilinear", align_corners=False)[0].argmax(0)
        pairs = labels.cpu().numpy() * benchmark.test.num_classes + benchmark.test.mask(index, side)
        table += np.bincount(pairs.ravel(), minlength=table.size).reshape(table.shape)
    return {
        "nmi": nmi(table), "ari": ari(table), "nmi_object": nmi(table[:, 1:]), "ari_object": ari(table[:, 1:]),
    }  # fmt: skip
