"""Paint the animals of the easy pictures: every body part has a pattern of its own, in colors that the picture draws.

The patterns are the same for all species. Their colors and phases differ from picture to picture, so neither the mean
color nor single pixels show a part.
"""

import math

import numpy as np

from semmae.sharding.creatures.paint import CONTOUR, THINGS, Paint
from semmae.sharding.creatures.shapes import (
    BODY,
    EARS,
    EYES,
    FUR,
    HEAD,
    INK,
    LEGS,
    PARTS,
    SNOUT,
    TAIL,
    WHITE,
    WINGS,
    Piece,
)

# direction of each part's pattern, and its number of waves over the side of the image
PATTERNS = {
    BODY: ("dots", 11),
    HEAD: ("plain", 0),
    LEGS: ("rows", 14),
    TAIL: ("diagonals", 14),
    EARS: ("columns", 8),
    WINGS: ("grid", 11),
    EYES: ("plain", 0),
    SNOUT: ("columns", 16),
}
SHARPNESS = 3.0  # larger values give harder edges


def with_pattern(piece: Piece) -> Piece:
    """Give a piece the paint of its part. White and black pieces, such as eyes and tusks, stay as they are."""
    return piece if piece.coat in (WHITE, INK) else piece._replace(coat=THINGS.stop + piece.part)


def pattern_paints(paints: list[Paint]) -> list[Paint]:
    """Extend a paint table by one paint per entry of PARTS, in the color of the fur; make the backdrop plain."""
    plain = [paint._replace(mark=paint.base) if paint.texture == 0 else paint for paint in paints]
    fur = paints[FUR].base
    mark = 0.4 * fur if fur.max() > 0.55 else np.clip(2.2 * fur + 0.1, 0, 1)
    return plain + [Paint(fur, mark, texture=part, relief=1.0, contour=CONTOUR) for part in range(len(PARTS))]


def draw_patterns(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """Draw one texture per entry of PARTS, each (n, n) in [0, 1], with random phases."""
    t = np.arange(n, dtype=np.float32) / n * (2 * math.pi)
    textures = [np.zeros((n, n), np.float32)]
    for part in range(1, len(PARTS)):
        kind, waves = PATTERNS[part]
        x, y = waves * t + rng.uniform(0, 2 * math.pi), (waves * t + rng.uniform(0, 2 * math.pi))[:, None]
        textures.append(np.clip(SHARPNESS * _field(kind, x, y) + 0.5, 0, 1))
    return textures


def _field(kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compute a pattern, (n, n), from the phases of its columns and rows; it is marked where it is positive."""
    match kind:
        case "rows":
            return np.sin(y) + 0 * x
        case "columns":
            return np.sin(x) + 0 * y
        case "diagonals":
            return np.sin(math.sqrt(0.5) * (x + y))
        case "dots":
            return 1.6 * np.sin(x) * np.sin(y) - 0.5
        case "grid":
            return np.maximum(np.sin(x), np.sin(y)) - 0.6
    return -np.ones_like(x + y)
