"""The embedded dataset: drawn animals, told apart only by the shape and arrangement of their parts.

`draw(seed, key, size)` is a pure function. It poses an animal (`anatomy`), places it (`_placed`),
surrounds it with scenery and with things made of the same shapes and paints (`_surroundings`),
mixes the paints (`_paints`), rasterises everything in painter's order into one canvas of piece and
part indices (`_rasterise`), and paints that canvas (`_paint`): two colours and a texture per paint,
relief from the distance to the nearest contour, contours, shadows, light. Paint, light, place, size
and scenery come from the same distributions for every species. All lengths are fractions of the
image side, so a key is the same animal at every size.
"""

import colorsys
import math
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from semmae.anatomy import ANIMALS, COATS, PARTS, Piece, blob, moved, oval, rotated, tube
from semmae.rng import numpy_generator

SPECIES: tuple[str, ...] = tuple(ANIMALS)
SUPERSAMPLE = 2
AREA = (0.15, 0.4)  # of the animal's silhouette, as a fraction of the picture
MAX_TILT = 0.35  # radians, in the plane
MAX_CUT = 0.04  # how far an animal may reach beyond the frame
MIN_CONTRAST = 0.5  # RGB distance between a coat and the backdrop, so that nobody is invisible

FOCUS = (0.006, 0.02)  # blur of the scenery, as a fraction of the picture
MAX_THINGS = 4
CONTOUR = 0.55  # how dark the line around an animal's parts is

# The rows of a picture's paint table: the animal's coats, the backdrop, scenery, single things.
BACKDROP = len(COATS)
SCENERY = range(BACKDROP + 1, BACKDROP + 4)
THINGS = range(SCENERY.stop, SCENERY.stop + MAX_THINGS)

Colour = np.ndarray  # (3,) float32 in [0, 1]


class Creature(NamedTuple):
    image: np.ndarray  # (size, size, 3) uint8, RGB
    mask: np.ndarray  # (size, size) uint8, indices into PARTS
    label: int  # index into SPECIES


class Paint(NamedTuple):
    base: Colour
    mark: Colour  # where the texture is 1
    texture: int  # index into the picture's textures; 0 is the scenery's
    relief: float  # strength of the shading by height
    contour: float  # strength of the dark line around a piece


def draw(seed: int, key: str, size: int, *, shuffle_parts: bool = False) -> Creature:
    """One creature; with `shuffle_parts` a chimera that says nothing of its label (the control)."""
    label = label_of(key)
    rng = partial(numpy_generator, seed, "creatures", key)
    pose = _chimera if shuffle_parts else ANIMALS[SPECIES[label]]
    animal = _placed(pose(rng("pose")), rng("place"))
    behind, ahead = _surroundings(rng("scenery"))
    canvas, row = _rasterise([*behind, *animal, *ahead], SUPERSAMPLE * size)
    image = _paint(canvas, row, _paints(rng("paint")), rng("light"))
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
    return [
        piece._replace(outline=outline)
        for piece, outline in zip(animal, np.split(points, ends), strict=True)
    ]


def _area(outlines: list[np.ndarray]) -> float:
    """The area that the outlines cover together, on a coarse raster of the unit square."""
    n = 64
    canvas = np.zeros((n, n), np.uint8)
    for outline in outlines:
        cv2.fillPoly(canvas, [np.rint(outline * (n - 1)).astype(np.int32)], 1)
    return float(canvas.mean())


def _surroundings(rng: np.random.Generator) -> tuple[list[Piece], list[Piece]]:
    """What is behind the animal and what is in front of it."""
    behind = _SCENERIES[rng.integers(len(_SCENERIES))](rng)
    ahead: list[Piece] = []
    for coat in THINGS[: rng.integers(MAX_THINGS + 1)]:
        thing = _THINGS[rng.integers(len(_THINGS))](rng, coat)
        size, turn = rng.uniform(0.07, 0.17), rng.uniform(-MAX_TILT, MAX_TILT)
        x, y = rng.uniform(0.03, 0.97, 2)
        if rng.random() < 0.2:
            ahead += moved(thing, x, rng.uniform(0.93, 1.0), turn, size)
        else:
            behind += moved(thing, x, y, turn, size)
    return behind, ahead


def _open(rng: np.random.Generator) -> list[Piece]:
    return []


def _layers(rng: np.random.Generator) -> list[Piece]:
    """Hills, dunes or waves: bands with wavy upper edges, one before the other."""
    x = np.linspace(-0.6, 1.6, 60)
    tops = np.sort(rng.uniform(0.05, 0.95, rng.integers(2, 7)))
    tilt = rng.uniform(-0.25, 0.25)
    pieces = []
    for i, top in enumerate(tops):
        y = top + rng.uniform(0.01, 0.06) * np.sin(rng.uniform(4, 30) * x + rng.uniform(0, 6.3))
        band = np.concatenate([np.stack([x, y], axis=1), [(1.6, 1.8), (-0.6, 1.8)]])
        pieces.append(Piece(rotated(band - 0.5, tilt) + 0.5, 0, SCENERY[i % 3]))
    return pieces


def _scatter(rng: np.random.Generator) -> list[Piece]:
    """Foliage, pebbles or petals: one outline strewn over the picture."""
    slim, point = rng.uniform(0.25, 1.0), rng.uniform(0, 0.9)
    outline = blob([(-1, 0), (-point, -slim), (0.3, -slim), (1, 0), (0.3, slim), (-point, slim)])
    wind, spread, grain = rng.uniform(0, 6.3), rng.uniform(0.1, 3.2), rng.uniform(0.03, 0.09)
    return [
        Piece(
            rotated(outline * grain * rng.uniform(0.6, 1.4), wind + rng.uniform(-spread, spread))
            + rng.uniform(-0.05, 1.05, 2), 0, SCENERY[rng.integers(3)],
        )
        for _ in range(rng.integers(20, 70))
    ]  # fmt: skip


def _blades(rng: np.random.Generator) -> list[Piece]:
    """Grass, reed or corals growing from the ground."""
    tall, wide = rng.uniform(0.2, 0.7), rng.uniform(0.01, 0.035)
    pieces = []
    for foot in rng.uniform(-0.05, 1.05, rng.integers(10, 34)):
        bow, height = rng.uniform(-0.2, 0.2), tall * rng.uniform(0.5, 1.5)
        spine = [(foot, 1.05), (foot + bow / 3, 1.05 - height / 2), (foot + bow, 1.05 - height)]
        blade = tube(spine, [1.5 * wide, 1.2 * wide, 0.4 * wide])
        pieces.append(Piece(blade, 0, SCENERY[rng.integers(3)]))
    return pieces


def _stone(rng: np.random.Generator, coat: int) -> list[Piece]:
    return [Piece(_round(rng.uniform(0.7, 1.2, 7)), 0, coat)]


def _log(rng: np.random.Generator, coat: int) -> list[Piece]:
    thick = rng.uniform(0.3, 0.5)
    trunk = tube([(-1.3, 0), (0, rng.uniform(-0.2, 0.2)), (1.3, 0)], [thick] * 3)
    return [Piece(trunk, 0, coat), Piece(oval(1.4, 0, 0.5 * thick, 0.85 * thick), 0, coat)]


def _balloon(rng: np.random.Generator, coat: int) -> list[Piece]:
    string = tube([(0, 1), (rng.uniform(-0.3, 0.3), 1.6), (0, 2.2)], [0.06, 0.06, 0.06])
    return [Piece(string, 0, coat), Piece(oval(0, 0, 0.85, rng.uniform(0.85, 1.15)), 0, coat)]


def _bush(rng: np.random.Generator, coat: int) -> list[Piece]:
    puffs = [(-0.7, 0.1), (0.7, 0.1), (-0.3, -0.4), (0.35, -0.45), (0, 0.1)]
    return [
        Piece(oval(x, y, *rng.uniform(0.5, 0.75, 2)), 0, coat, joined=i > 0)
        for i, (x, y) in enumerate(puffs)
    ]


def _toadstool(rng: np.random.Generator, coat: int) -> list[Piece]:
    stem = tube([(0, 0), (rng.uniform(-0.2, 0.2), 1.1)], [0.25, 0.35])
    cap = blob([(-1, 0.1), (-0.7, -0.6), (0, -0.9), (0.7, -0.6), (1, 0.1), (0, 0.25)])
    return [Piece(stem, 0, coat), Piece(cap, 0, coat)]


def _star(rng: np.random.Generator, coat: int) -> list[Piece]:
    dent, arms = rng.uniform(0.4, 0.7), rng.integers(4, 7)
    return [Piece(_round(np.tile([1.15, dent], arms)), 0, coat)]


def _round(radii: np.ndarray) -> np.ndarray:
    """A closed curve around the origin through points at these distances from it."""
    turns = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return blob(np.stack([radii * np.cos(turns), radii * np.sin(turns)], axis=1))


_SCENERIES = (_open, _layers, _scatter, _scatter, _blades)
_THINGS = (_stone, _log, _balloon, _bush, _toadstool, _star)


def _colour(rng: np.random.Generator) -> Colour:
    hsv = rng.uniform(0, 1), rng.uniform(0.1, 0.65), rng.uniform(0.35, 0.95)
    return np.array(colorsys.hsv_to_rgb(*hsv), np.float32)


def _near(colour: Colour, rng: np.random.Generator, most: float = 0.3) -> Colour:
    """A colour that goes with `colour`: lighter or darker, a little off in hue."""
    shift = rng.choice([-1, 1]) * rng.uniform(most / 3, most) + rng.uniform(-0.08, 0.08, 3)
    return np.clip(colour + shift, 0.05, 1).astype(np.float32)


def _paints(rng: np.random.Generator) -> list[Paint]:
    """The paint table: coats, backdrop, scenery, things; see the constants above."""
    ground = _colour(rng)

    def standing_out() -> Colour:
        candidates = [_colour(rng) for _ in range(8)]
        far_enough = (c for c in candidates if np.linalg.norm(c - ground) > MIN_CONTRAST)
        return next(far_enough, candidates[-1])

    def marked(base: Colour) -> Colour:
        return _near(base, rng) if rng.random() < 0.7 else _colour(rng)

    fur, trim = standing_out(), standing_out()
    mark = marked(fur)
    white, ink = np.full(3, 0.96, np.float32), np.full(3, 0.07, np.float32)
    coats = [
        Paint(fur, mark, texture=1, relief=1.0, contour=CONTOUR),
        Paint(0.68 * fur, 0.68 * mark, texture=1, relief=0.8, contour=CONTOUR),
        Paint(trim, trim, texture=1, relief=1.0, contour=CONTOUR),
        Paint(white, white, texture=1, relief=0.3, contour=CONTOUR),
        Paint(ink, ink, texture=1, relief=0.2, contour=0.0),
    ]
    backdrop = Paint(ground, _near(ground, rng, 0.2), texture=0, relief=0.0, contour=0.0)
    relief, wild = rng.uniform(0.0, 0.3), 0.25
    scenery = [
        Paint(_near(ground, rng, wild), _near(ground, rng, wild), 0, relief, 0.0)
        for _ in SCENERY
    ]
    things = []
    for i in range(MAX_THINGS):
        base = standing_out()
        things.append(Paint(base, marked(base), texture=1 + i % 2, relief=1.0, contour=CONTOUR))
    return [*coats, backdrop, *scenery, *things]


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


def _noise(rng: np.random.Generator, cells: int, n: int) -> np.ndarray:
    """(n, n) smooth noise: `cells` random values a side, the same field whatever n is."""
    values = rng.standard_normal((cells, cells), dtype=np.float32)
    return cv2.resize(values, (n, n), interpolation=cv2.INTER_CUBIC)


def _texture(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, n) in [0, 1]: stripes, spots, patches, speckles or cloud, at any scale and angle."""
    kind, angle, waves = rng.integers(5), rng.uniform(0, np.pi), rng.uniform(5, 14)
    threshold, sharpness = rng.uniform(0.0, 0.5), rng.uniform(1.5, 5)
    t = np.arange(n, dtype=np.float32) / n * (2 * math.pi * waves)
    c, s = math.cos(angle), math.sin(angle)
    u, v = c * t + s * t[:, None], c * t[:, None] - s * t
    if kind == 0:
        field = np.sin(u + 1.3 * _noise(rng, 8, n))
    elif kind == 1:
        warp = 0.8 * _noise(rng, 10, n)
        field = 1.4 * np.sin(u + warp) * np.sin(v + warp)
    else:
        field = _noise(rng, (12, 28, 5)[kind - 2], n)
    return np.clip(sharpness * (field - threshold) + 0.5, 0, 1)


def _defocused(image: np.ndarray, *, far: np.ndarray, sigma: float) -> np.ndarray:
    """The scenery out of focus, as behind a subject in a photograph; what is near keeps its edge."""
    weight = far.astype(np.float32)
    haze = cv2.GaussianBlur(image * weight[..., None], (0, 0), sigma)
    haze /= cv2.GaussianBlur(weight, (0, 0), sigma)[..., None] + 1e-6
    return np.where(far[..., None], haze, image)


def _paint(
    canvas: np.ndarray, rows: np.ndarray, paints: list[Paint], rng: np.random.Generator
) -> np.ndarray:
    """(n, n, 3) uint8: every pixel of the canvas in its paint, with relief, contours and light."""
    n = len(canvas)
    piece = canvas[..., 0]
    base, change, kind, relief, contour = (
        np.take(np.array(column, np.float32)[rows], piece, axis=0)
        for column in zip(*((p.base, p.mark - p.base, *p[2:]) for p in paints), strict=True)
    )
    textures = [_texture(rng, n) for _ in range(3)]
    image = base + change * np.choose(kind.astype(np.uint8), textures)[..., None]

    image = _defocused(image, far=kind == 0, sigma=rng.uniform(*FOCUS) * n)

    inside = np.ones((n, n), np.uint8)  # 0 on the border between two pieces
    inside[:, 1:] &= piece[:, 1:] == piece[:, :-1]
    inside[1:] &= piece[1:] == piece[:-1]
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 3) / n
    slope = 1 - np.minimum(distance / 0.07, 1)
    height = cv2.GaussianBlur(np.sqrt(1 - slope * slope), (0, 0), 0.01 * n)
    towards = rng.uniform(-0.9, 0.9)  # the light comes from above, more or less
    across, down = 0.012 * n * math.sin(towards), -0.012 * n * math.cos(towards)
    light = across * cv2.Sobel(height, cv2.CV_32F, 1, 0)
    light += down * cv2.Sobel(height, cv2.CV_32F, 0, 1)
    light = 1 + relief * (0.35 * np.clip(light, -1, 1) - 0.1 * (1 - height))
    light *= 1 - contour * np.clip(1.6 - distance / 0.006, 0, 1)

    solid = (kind > 0).astype(np.float32)  # animals and things cast a shadow, scenery does not
    coarse = cv2.resize(solid, (48, 48), interpolation=cv2.INTER_AREA)
    fall = np.array([[1, 0, -2 * math.sin(towards)], [0, 1, 2]])  # two cells, away from the light
    shadow = cv2.GaussianBlur(cv2.warpAffine(coarse, fall, (48, 48)), (0, 0), 1.5)
    shadow = cv2.resize(shadow, (n, n), interpolation=cv2.INTER_LINEAR)
    light *= 1 - 0.4 * shadow * (1 - solid)

    light *= 1 + 0.1 * _noise(rng, 3, n) + 0.03 * _noise(rng, 96, n)  # uneven light, and grain
    return np.clip(image * light[..., None] * 255, 0, 255).astype(np.uint8)
