"""Make the outlines of the pieces of a picture. The y axis points down; the unit is about one body length.

Three functions make all outlines: `oval`, `tube` (a spline with a radius, for limbs) and `blob` (a closed spline).
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

PARTS = (
    "background", "body", "head", "legs", "tail", "ears", "wings_or_fins", "eyes", "snout",
)  # fmt: skip
BODY, HEAD, LEGS, TAIL, EARS, WINGS, EYES, SNOUT = range(1, len(PARTS))
COATS = ("fur", "far", "trim", "white", "ink")  # far: darker fur, e.g. of the far legs; trim: e.g. beak, inner ear
FUR, FAR, TRIM, WHITE, INK = range(len(COATS))

Number = float | int
Points = Sequence[tuple[Number, Number]] | np.ndarray


class Piece(NamedTuple):
    """A filled polygon of a picture."""

    outline: np.ndarray  # (k, 2), x right, y down
    part: int  # index into PARTS
    coat: int  # row of the paint table of the picture; its first rows are COATS
    joined: bool = False  # whether no contour separates it from the previous piece


_ANGLES = np.linspace(0, 2 * np.pi, 28, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
_CAP_ANGLES = np.linspace(0, np.pi, 7)[1:-1, None]
_STEPS = 6  # polygon vertices per spline segment


@cache
def _spline(n: int, closed: bool) -> np.ndarray:
    """Make the matrix that maps n control points to samples of the Catmull-Rom spline through them."""
    t = np.arange(_STEPS)[:, None] / _STEPS
    weights = 0.5 * np.hstack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2])
    segments = n if closed else n - 1
    matrix = np.zeros((segments * _STEPS + (not closed), n))
    for i in range(segments):
        for column, weight in zip(range(i - 1, i + 3), weights.T, strict=True):
            column = column % n if closed else min(max(column, 0), n - 1)
            matrix[i * _STEPS : (i + 1) * _STEPS, column] += weight
    if not closed:
        matrix[-1, -1] = 1
    return matrix


def oval(x: Number, y: Number, rx: Number, ry: Number, angle: Number = 0.0) -> np.ndarray:
    """Make an ellipse around (x, y) with radii `rx` and `ry`, rotated clockwise by `angle` radians."""
    return np.add(rotate(_CIRCLE * (rx, ry), angle), (x, y))


def tube(points: Points, radii: Sequence[Number]) -> np.ndarray:
    """Make a limb with round ends: a spline through `points`, with a radius at each point."""
    matrix = _spline(len(points), False)
    center, radius = matrix @ np.asarray(points, float), (matrix @ np.asarray(radii))[:, None]
    tangent = np.gradient(center, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    normal = tangent[:, ::-1] * (-1, 1)
    end = center[-1] + radius[-1] * (np.cos(_CAP_ANGLES) * normal[-1] + np.sin(_CAP_ANGLES) * tangent[-1])
    start = center[0] - radius[0] * (np.cos(_CAP_ANGLES) * normal[0] + np.sin(_CAP_ANGLES) * tangent[0])
    left, right = center + radius * normal, center - radius * normal
    return np.concatenate([left, end, right[::-1], start])


def blob(points: Points) -> np.ndarray:
    """Make a smooth closed curve through `points`."""
    return _spline(len(points), True) @ np.asarray(points, float)


def rotate(points: np.ndarray, angle: Number) -> np.ndarray:
    """Rotate points clockwise about the origin by `angle` radians."""
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


def transform(pieces: Iterable[Piece], x: Number, y: Number, angle: Number = 0.0, size: Number = 1.0) -> list[Piece]:
    """Rotate pieces by `angle` radians and scale them by `size` about the origin, then shift them by (x, y)."""
    return [p._replace(outline=rotate(p.outline, angle) * size + (x, y)) for p in pieces]
