"""How a drawn picture is painted: two colors and a texture per paint, relief, contours, shadows, light.

`paints` mixes a picture's paint table; `paint` gives every pixel of a canvas of pieces its paint. Scenery is out of
focus, as behind a subject in a photograph. The paint table's rows: the animal's coats, the backdrop, scenery, single
things.
"""

import colorsys
import math
from typing import NamedTuple

import cv2
import numpy as np

from semmae.sharding.creatures.animals import COATS

MIN_CONTRAST = 0.5  # RGB distance between a coat and the backdrop, so that nobody is invisible
FOCUS = (0.006, 0.02)  # blur of the scenery, as a fraction of the picture
CONTOUR = 0.55  # how dark the line around an animal's parts is
MAX_THINGS = 4

BACKDROP = len(COATS)
SCENERY = range(BACKDROP + 1, BACKDROP + 4)
THINGS = range(SCENERY.stop, SCENERY.stop + MAX_THINGS)

Color = np.ndarray  # (3,) float32 in [0, 1]


class Paint(NamedTuple):
    base: Color
    mark: Color  # where the texture is 1
    texture: int  # index into the picture's textures; 0 is the scenery's
    relief: float  # strength of the shading by height
    contour: float  # strength of the dark line around a piece


def _color(rng: np.random.Generator) -> Color:
    hsv = rng.uniform(0, 1), rng.uniform(0.1, 0.65), rng.uniform(0.35, 0.95)
    return np.array(colorsys.hsv_to_rgb(*hsv), np.float32)


def _near(color: Color, rng: np.random.Generator, most: float = 0.3) -> Color:
    """A color that goes with `color`: lighter or darker, a little off in hue."""
    shift = rng.choice([-1, 1]) * rng.uniform(most / 3, most) + rng.uniform(-0.08, 0.08, 3)
    return np.clip(color + shift, 0.05, 1).astype(np.float32)


def paints(rng: np.random.Generator) -> list[Paint]:
    """The paint table: coats, backdrop, scenery, things; see the constants above."""
    ground = _color(rng)

    def standing_out() -> Color:
        candidates = [_color(rng) for _ in range(8)]
        far_enough = (c for c in candidates if np.linalg.norm(c - ground) > MIN_CONTRAST)
        return next(far_enough, candidates[-1])

    def marked(base: Color) -> Color:
        return _near(base, rng) if rng.random() < 0.7 else _color(rng)

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
    scenery = [Paint(_near(ground, rng, wild), _near(ground, rng, wild), 0, relief, 0.0) for _ in SCENERY]
    things = []
    for i in range(MAX_THINGS):
        base = standing_out()
        things.append(Paint(base, marked(base), texture=1 + i % 2, relief=1.0, contour=CONTOUR))
    return [*coats, backdrop, *scenery, *things]


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
    haze: np.ndarray = cv2.GaussianBlur(image * weight[..., None], (0, 0), sigma)
    haze /= cv2.GaussianBlur(weight, (0, 0), sigma)[..., None] + 1e-6
    return np.where(far[..., None], haze, image)


def paint(canvas: np.ndarray, rows: np.ndarray, paints: list[Paint], rng: np.random.Generator) -> np.ndarray:
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
