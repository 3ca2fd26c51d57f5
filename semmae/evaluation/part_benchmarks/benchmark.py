"""What a part benchmark consists of: images to fit parts on, and images with keypoints or masks to score them on."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from semmae.sharding.image_files import ImageFiles

SUPERSAMPLING = 8  # masks are drawn at this multiple of their size


@dataclass(frozen=True)
class KeypointImages:
    """Images with keypoints.

    Attributes:
        images: The image files.
        points: x (to the right) and y (down) of each keypoint, in pixels from the top left corner of the image.
        visible: Whether each keypoint is visible.
        boxes: x, y, width and height of the object, in pixels: keypoints are regressed in coordinates of this box.
            None: in coordinates of the whole image.
        scale_points: The error of a regressed keypoint is relative to the distance between these two keypoints. None:
            it is relative to the box.
    """

    images: ImageFiles
    points: Float64[np.ndarray, "n l 2"]
    visible: Bool[np.ndarray, "n l"]
    boxes: Float64[np.ndarray, "n 4"] | None = None
    scale_points: tuple[int, int] | None = None


@dataclass(frozen=True)
class Polygon:
    """A region of an image: its class, from 1 on, and its corners (x, y), as fractions of the width and height."""

    label: int
    corners: Float64[np.ndarray, "c 2"]


@dataclass(frozen=True)
class PolygonImages:
    """Images whose true parts are polygons.

    Attributes:
        images: The image files.
        polygons: The polygons of each image. Where two overlap, the earlier one covers the later one.
        num_classes: Number of labels, with the background, which is 0.
    """

    images: ImageFiles
    polygons: list[list[Polygon]]
    num_classes: int

    def mask(self, index: int, size: int) -> UInt8[np.ndarray, "{size} {size}"]:
        """Draw the true label of the center of each pixel, in the image resized to a square."""
        import cv2  # a slow import

        fine = np.zeros((size * SUPERSAMPLING,) * 2, np.uint8)  # OpenCV also fills the pixels on the outline
        for polygon in reversed(self.polygons[index]):
            corners = np.round(polygon.corners * len(fine) - 0.5).astype(np.int32)
            cv2.fillPoly(fine, [corners], polygon.label)
        return np.ascontiguousarray(fine[SUPERSAMPLING // 2 :: SUPERSAMPLING, SUPERSAMPLING // 2 :: SUPERSAMPLING])


@dataclass(frozen=True)
class KeypointBenchmark:
    """A benchmark with keypoints.

    Attributes:
        name: Name of the benchmark and its variant, for files.
        train: Images to fit the parts on.
        fit: Images to fit the regression of keypoints on.
        test: Images to score.
    """

    name: str
    train: ImageFiles
    fit: KeypointImages
    test: KeypointImages


@dataclass(frozen=True)
class PolygonBenchmark:
    """A benchmark with segmented parts.

    Attributes:
        name: Name of the benchmark and its variant, for files.
        train: Images to fit the parts on.
        test: Images to score.
    """

    name: str
    train: ImageFiles
    test: PolygonImages


PartBenchmark = KeypointBenchmark | PolygonBenchmark
