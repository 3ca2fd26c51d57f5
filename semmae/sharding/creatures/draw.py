"""Draw the pictures of the built-in dataset: animals whose species differ only in the shape and layout of their parts.

Paint, light, position, size and scenery have the same distributions for all species. All lengths are fractions of the
side of the image, so a key gives the same animal at every image size.
"""

from functools import partial
from typing import Literal, NamedTuple

import cv2
import numpy as np

from semmae.core.rng import numpy_generator
from semmae.sharding.creatures.animals import ANIMALS
from semmae.sharding.creatures.paint import BACKDROP, draw_paints, draw_textures, paint
from semmae.sharding.creatures.patterns import draw_patterns, pattern_paints, with_pattern
from semmae.sharding.creatures.scenery import MAX_TILT, draw_surroundings
from semmae.sharding.creatures.shapes import PARTS, Piece, rotate, transform

SPECIES: tuple[str, ...] = tuple(ANIMALS)
SUPERSAMPLE = 2
MAX_CUT = 0.04  # largest distance by which the animal sticks out of the frame, as a fraction of the side


Difficulty = Literal["hard", "easy"]


class Framing(NamedTuple):
    """The ranges of the size and of the angle of an animal."""

    area: tuple[float, float]  # as a fraction of the image area
    max_tilt: float  # radians, in the image plane


FRAMINGS: dict[Difficulty, Framing] = {"hard": Framing((0.15, 0.4), MAX_TILT), "easy": Framing((0.2, 0.42), 0.25)}


class Creature(NamedTuple):
    """A drawn animal."""

    image: np.ndarray  # (size, size, 3) uint8, RGB
    mask: np.ndarray  # (size, size) uint8, indices into PARTS
    label: int  # index into SPECIES


def draw(seed: int, key: str, size: int, *, difficulty: Difficulty = "hard", shuffle_parts: bool = False) -> Creature:
    """Draw a creature, as a pure function of `seed` and `key`.

    Args:
        key: The random numbers depend on it. Its trailing number determines the species.
        size: Side of the image, in pixels.
        difficulty: hard draws random coats, scenery and things. easy draws a plain backdrop, larger animals with less
            tilt, and a pattern of its own on each body part, the same for all species.
        shuffle_parts: Draw a chimera instead, whose parts do not depend on the label. Probes use it as a control.
    """
    label = label_of(key)
    rng = partial(numpy_generator, seed, "creatures", key)
    pose = _chimera if shuffle_parts else ANIMALS[SPECIES[label]]
    animal = _put_in_frame(pose(rng("pose")), FRAMINGS[difficulty], rng("place"))
    paints, light, n = draw_paints(rng("paint")), rng("light"), SUPERSAMPLE * size
    if difficulty == "easy":
        pieces = [with_pattern(piece) for piece in animal]
        paints, textures = pattern_paints(paints), draw_patterns(light, n)
    else:
        background, foreground = draw_surroundings(rng("scenery"))
        pieces, textures = [*background, *animal, *foreground], draw_textures(light, n)
    canvas, rows = _rasterize(pieces, n)
    image = paint(canvas, rows, paints, textures, light)
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    mask = np.ascontiguousarray(canvas[1::SUPERSAMPLE, 1::SUPERSAMPLE, 1])
    return Creature(image, mask, label)


def label_of(key: str) -> int:
    """Compute the label of a creature: the trailing number of its key modulo the number of species.

    Raises:
        ValueError: The key has no trailing number.
    """
    number = key[len(key.rstrip("0123456789")) :]
    if not number:
        raise ValueError(f"creature key {key!r} has no trailing number; expected e.g. train-000017")
    return int(number) % len(SPECIES)


def _chimera(rng: np.random.Generator) -> list[Piece]:
    """Draw each part from a random species, at a random position and angle."""
    pieces = []
    for part in range(1, len(PARTS)):
        animal = ANIMALS[SPECIES[rng.integers(len(SPECIES))]](rng)
        part_pieces = [piece._replace(joined=False) for piece in animal if piece.part == part]
        if part_pieces:
            center = np.concatenate([piece.outline for piece in part_pieces]).mean(axis=0)
            part_pieces = transform(transform(part_pieces, *-center), 0, 0, rng.uniform(-np.pi, np.pi))
            pieces += transform(part_pieces, *rng.uniform((-0.6, -0.4), (0.6, 0.4)))
    return pieces


def _put_in_frame(animal: list[Piece], framing: Framing, rng: np.random.Generator) -> list[Piece]:
    """Stretch, mirror, tilt, scale and shift an animal at random.

    The result sticks out of the unit square by at most MAX_CUT.
    """
    points = np.concatenate([piece.outline for piece in animal])
    points = points * rng.uniform(0.88, 1.12, 2) * (rng.choice([-1, 1]), 1)
    points = rotate(points, rng.uniform(-framing.max_tilt, framing.max_tilt))
    low, extent = points.min(axis=0), np.ptp(points, axis=0)
    split_points = np.cumsum([len(piece.outline) for piece in animal])[:-1]
    area = _union_area(np.split((points - low) / extent.max(), split_points))
    longer_side = min(np.sqrt(rng.uniform(*framing.area) / area), 1 + MAX_CUT)
    free_space = 1 - longer_side * extent / extent.max()
    corner = rng.uniform(-MAX_CUT, np.maximum(free_space, -MAX_CUT) + MAX_CUT)
    points = (points - low) * longer_side / extent.max() + corner
    return [
        piece._replace(outline=outline) for piece, outline in zip(animal, np.split(points, split_points), strict=True)
    ]


def _union_area(outlines: list[np.ndarray]) -> float:
    """Measure the area of the union of the outlines in the unit square, on a coarse raster."""
    n = 64
    canvas = np.zeros((n, n), np.uint8)
    for outline in outlines:
        cv2.fillPoly(canvas, [np.rint(outline * (n - 1)).astype(np.int32)], 1)
    return float(canvas.mean())


def _rasterize(pieces: list[Piece], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Fill the pieces in their order, so that a later piece covers earlier ones. Joined pieces share a number.

    Returns:
        (n, n, 2) uint8, the number and the part of the visible piece; and the row of the paint table for each number.
    """
    canvas = np.zeros((n, n, 2), np.uint8)
    rows = [BACKDROP]
    fraction_bits = 4  # sub-pixel precision of the corners
    for piece in pieces:
        if not piece.joined:
            rows.append(piece.coat)
        corners = np.rint((piece.outline * n - 0.5) * (1 << fraction_bits)).astype(np.int32)
        cv2.fillPoly(canvas, [corners], (len(rows) - 1, piece.part), shift=fraction_bits)
    assert len(rows) <= 256, "a canvas holds 255 pieces"
    return canvas, np.array(rows)
