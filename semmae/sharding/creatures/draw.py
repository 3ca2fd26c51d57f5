"""The embedded dataset: drawn animals, told apart only by the shape and arrangement of their parts.

`draw(seed, key, size)` is a pure function. It poses an animal (`anatomy`), places it (`_placed`),
surrounds it with scenery and with things made of the same shapes and paints (`scenery`),
rasterises everything in painter's order into one canvas of piece and part indices (`_rasterise`),
and paints that canvas (`paint`). Paint, light, place, size and scenery come from the same
distributions for every species. All lengths are fractions of the
image side, so a key is the same animal at every size.
"""

from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from semmae.core.rng import numpy_generator
from semmae.sharding.creatures.animals import ANIMALS, PARTS, Piece, moved, rotated
from semmae.sharding.creatures.paint import BACKDROP, paint, paints
from semmae.sharding.creatures.scenery import MAX_TILT, surroundings

SPECIES: tuple[str, ...] = tuple(ANIMALS)
SUPERSAMPLE = 2
AREA = (0.15, 0.4)  # of the animal's silhouette, as a fraction of the picture
MAX_CUT = 0.04  # how far an animal may reach beyond the frame


class Creature(NamedTuple):
    image: np.ndarray  # (size, size, 3) uint8, RGB
    mask: np.ndarray  # (size, size) uint8, indices into PARTS
    label: int  # index into SPECIES


def draw(seed: int, key: str, size: int, *, shuffle_parts: bool = False) -> Creature:
    """One creature; with `shuffle_parts` a chimera that says nothing of its label (the control)."""
    label = label_of(key)
    rng = partial(numpy_generator, seed, "creatures", key)
    pose = _chimera if shuffle_parts else ANIMALS[SPECIES[label]]
    animal = _placed(pose(rng("pose")), rng("place"))
    behind, ahead = surroundings(rng("scenery"))
    canvas, row = _rasterise([*behind, *animal, *ahead], SUPERSAMPLE * size)
    image = paint(canvas, row, paints(rng("paint")), rng("light"))
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    mask = np.ascontiguousarray(canvas[1::SUPERSAMPLE, 1::SUPERSAMPLE, 1])
    return Creature(image, mask, label)


def label_of(key: str) -> int:
    """Balanced labels: the trailing number of the key, modulo the number of species."""
    number = key[len(key.rstrip("0123456789")) :]
    if not number:
        raise ValueError(f"creature key {key!r} has no trailing number; expected e.g. train-000017")
    return int(number) % len(SPECIES)


def _chimera(rng: np.random.Generator) -> list[Piece]:
    """Every part from a species of its own, turned any way and put anywhere on the body."""
    pieces = []
    for part in range(1, len(PARTS)):
        animal = ANIMALS[SPECIES[rng.integers(len(SPECIES))]](rng)
        chosen = [piece._replace(joined=False) for piece in animal if piece.part == part]
        if chosen:
            middle = np.concatenate([piece.outline for piece in chosen]).mean(axis=0)
            chosen = moved(moved(chosen, *-middle), 0, 0, rng.uniform(-np.pi, np.pi))
            pieces += moved(chosen, *rng.uniform((-0.6, -0.4), (0.6, 0.4)))
    return pieces


def _placed(animal: list[Piece], rng: np.random.Generator) -> list[Piece]:
    """The animal stretched, mirrored, tilted, scaled and put somewhere into the unit square."""
    points = np.concatenate([piece.outline for piece in animal])
    points = points * rng.uniform(0.88, 1.12, 2) * (rng.choice([-1, 1]), 1)
    points = rotated(points, rng.uniform(-MAX_TILT, MAX_TILT))
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    ends = np.cumsum([len(piece.outline) for piece in animal])[:-1]
    area = _area(np.split((points - low) / span.max(), ends))
    side = min(np.sqrt(rng.uniform(*AREA) / area), 1 + MAX_CUT)  # of the longer side
    room = 1 - side * span / span.max()
    corner = rng.uniform(-MAX_CUT, np.maximum(room, -MAX_CUT) + MAX_CUT)
    points = (points - low) * side / span.max() + corner
    return [piece._replace(outline=outline) for piece, outline in zip(animal, np.split(points, ends), strict=True)]


def _area(outlines: list[np.ndarray]) -> float:
    """The area that the outlines cover together, on a coarse raster of the unit square."""
    n = 64
    canvas = np.zeros((n, n), np.uint8)
    for outline in outlines:
        cv2.fillPoly(canvas, [np.rint(outline * (n - 1)).astype(np.int32)], 1)
    return float(canvas.mean())


def _rasterise(scene: list[Piece], n: int) -> tuple[np.ndarray, np.ndarray]:
    """The scene as (n, n, 2) uint8, piece number and part, and the paint row of each number."""
    canvas = np.zeros((n, n, 2), np.uint8)
    rows = [BACKDROP]
    fraction = 4  # bits of sub-pixel precision
    for piece in scene:
        if not piece.joined:
            rows.append(piece.coat)
        corners = np.rint((piece.outline * n - 0.5) * (1 << fraction)).astype(np.int32)
        cv2.fillPoly(canvas, [corners], (len(rows) - 1, piece.part), shift=fraction)
    assert len(rows) <= 256, "a canvas holds 255 pieces"
    return canvas, np.array(rows)
