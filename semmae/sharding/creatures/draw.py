"""The built-in dataset: drawn animals, whose species differ only in the shape and the arrangement of their parts.

Paint, light, position, size and scenery have the same distributions for all species. All lengths are fractions of the
side of the image, so a key is the same animal at every size.
"""

from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from semmae.core.rng import numpy_generator
from semmae.sharding.creatures.animals import ANIMALS
from semmae.sharding.creatures.paint import BACKDROP, draw_paints, paint
from semmae.sharding.creatures.scenery import MAX_TILT, draw_surroundings
from semmae.sharding.creatures.shapes import PARTS, Piece, rotate, transform

SPECIES: tuple[str, ...] = tuple(ANIMALS)
SUPERSAMPLE = 2
AREA = (0.15, 0.4)  # range of the area of the animal, as a fraction of the picture
MAX_CUT = 0.04  # largest part of the animal outside of the frame, as a fraction of the side


class Creature(NamedTuple):
    """A drawn animal."""

    image: np.ndarray  # (size, size, 3) uint8, RGB
    mask: np.ndarray  # (size, size) uint8, indices into PARTS
    label: int  # index into SPECIES


def draw(seed: int, key: str, size: int, *, shuffle_parts: bool = False) -> Creature:
    """Draw a creature, as a pure function of `seed` and `key`.

    Args:
        key: Random numbers depend on it, and its trailing number sets the species.
        size: Side of the image, in pixels.
        shuffle_parts: Draw a chimera instead, whose parts are independent of the label: a control for probes.
    """
    label = label_of(key)
    rng = partial(numpy_generator, seed, "creatures", key)
    pose = _chimera if shuffle_parts else ANIMALS[SPECIES[label]]
    animal = _put_in_frame(pose(rng("pose")), rng("place"))
    background, foreground = draw_surroundings(rng("scenery"))
    canvas, rows = _rasterize([*background, *animal, *foreground], SUPERSAMPLE * size)
    image = paint(canvas, rows, draw_paints(rng("paint")), rng("light"))
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    mask = np.ascontiguousarray(canvas[1::SUPERSAMPLE, 1::SUPERSAMPLE, 1])
    return Creature(image, mask, label)


def label_of(key: str) -> int:
    """Compute the label of a creature: the trailing number of its key, modulo the number of species.

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
        chosen = [piece._replace(joined=False) for piece in animal if piece.part == part]
        if chosen:
            middle = np.concatenate([piece.outline for piece in chosen]).mean(axis=0)
            chosen = transform(transform(chosen, *-middle), 0, 0, rng.uniform(-np.pi, np.pi))
            pieces += transform(chosen, *rng.uniform((-0.6, -0.4), (0.6, 0.4)))
    return pieces


def _put_in_frame(animal: list[Piece], rng: np.random.Generator) -> list[Piece]:
    """Stretch, mirror, tilt, scale and shift an animal at random, so that it lies in the unit square."""
    points = np.concatenate([piece.outline for piece in animal])
    points = points * rng.uniform(0.88, 1.12, 2) * (rng.choice([-1, 1]), 1)
    points = rotate(points, rng.uniform(-MAX_TILT, MAX_TILT))
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    ends = np.cumsum([len(piece.outline) for piece in animal])[:-1]
    area = _area(np.split((points - low) / span.max(), ends))
    longer_side = min(np.sqrt(rng.uniform(*AREA) / area), 1 + MAX_CUT)
    room = 1 - longer_side * span / span.max()
    corner = rng.uniform(-MAX_CUT, np.maximum(room, -MAX_CUT) + MAX_CUT)
    points = (points - low) * longer_side / span.max() + corner
    return [piece._replace(outline=outline) for piece, outline in zip(animal, np.split(points, ends), strict=True)]


def _area(outlines: list[np.ndarray]) -> float:
    """Measure the area of the union of the outlines on a coarse raster of the unit square."""
    n = 64
    canvas = np.zeros((n, n), np.uint8)
    for outline in outlines:
        cv2.fillPoly(canvas, [np.rint(outline * (n - 1)).astype(np.int32)], 1)
    return float(canvas.mean())


def _rasterize(pieces: list[Piece], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Fill the pieces in their order.

    Returns:
        (n, n, 2) uint8, the number of the visible piece and its part; and the paint row of each piece number.
    """
    canvas = np.zeros((n, n, 2), np.uint8)
    rows = [BACKDROP]
    fraction = 4  # bits of sub-pixel precision
    for piece in pieces:
        if not piece.joined:
            rows.append(piece.coat)
        corners = np.rint((piece.outline * n - 0.5) * (1 << fraction)).astype(np.int32)
        cv2.fillPoly(canvas, [corners], (len(rows) - 1, piece.part), shift=fraction)
    assert len(rows) <= 256, "a canvas holds 255 pieces"
    return canvas, np.array(rows)
