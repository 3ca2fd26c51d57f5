"""Paint a picture: colors, textures, relief, contours, shadows and light.

A picture has a paint table with these rows: the coats of the animal, the backdrop, three paints of scenery, and one
paint per thing. `draw_paints` draws a random table, and `paint` renders a canvas of pieces with it and with textures.
`draw_textures` draws random ones. Scenery is blurred, like the background of a photograph.
"""

import colorsys
import math
from typing import NamedTuple

import cv2
import numpy as np

from semmae.sharding.creatures.shapes import COATS

MIN_CONTRAST = 0.5  # minimum RGB distance between coats and backdrop, so that animals are visible
BLUR = (0.006, 0.02)  # range of the standard deviation of the scenery blur, as a fraction of the side
CONTOUR = 0.55  # darkness of the line around a piece, in [0, 1]
MAX_THINGS = 4

BACKDROP = len(COATS)
SCENERY = range(BACKDROP + 1, BACKDROP + 4)
THINGS = range(SCENERY.stop, SCENERY.stop + MAX_THINGS)

Color = np.ndarray  # (3,) float32 in [0, 1]


class Paint(NamedTuple):
    """The appearance of the pieces that refer to one row of the paint table."""

    base: Color
    mark: Color  # color where the texture is 1
    texture: int  # index into the textures of the picture; 0 for scenery and backdrop
    relief: float  # strength of the relief shading
    contour: float  # darkness of the line around a piece


def _random_color(rng: np.random.Generator) -> Color:
    hsv = rng.uniform(0, 1), rng.uniform(0.1, 0.65), rng.uniform(0.35, 0.95)
    return np.array(colorsys.hsv_to_rgb(*hsv), np.float32)


def _similar_color(color: Color, rng: np.random.Generator, max_shift: float = 0.3) -> Color:
    """Draw a similar color: lighter or darker by up to `max_shift`, with a small change in hue."""
    shift = rng.choice([-1, 1]) * rng.uniform(max_shift / 3, max_shift) + rng.uniform(-0.08, 0.08, 3)
    return np.clip(color + shift, 0.05, 1).astype(np.float32)


def draw_paints(rng: np.random.Generator) -> list[Paint]:
    """Draw a paint table. Its rows are the COATS, the BACKDROP, the SCENERY and the THINGS."""
    ground = _random_color(rng)

    def contrasting_color() -> Color:
        candidates = [_random_color(rng) for _ in range(8)]
        far_enough = (c for c in candidates if np.linalg.norm(c - ground) > MIN_CONTRAST)
        return next(far_enough, candidates[-1])

    def mark_color(base: Color) -> Color:
        return _similar_color(base, rng) if rng.random() < 0.7 else _random_color(rng)

    fur, trim = contrasting_color(), contrasting_color()
    mark = mark_color(fur)
    white, ink = np.full(3, 0.96, np.float32), np.full(3, 0.07, np.float32)
    coats = [
        Paint(fur, mark, texture=1, relief=1.0, contour=CONTOUR),
        Paint(0.68 * fur, 0.68 * mark, texture=1, relief=0.8, contour=CONTOUR),
        Paint(trim, trim, texture=1, relief=1.0, contour=CONTOUR),
        Paint(white, white, texture=1, relief=0.3, contour=CONTOUR),
        Paint(ink, ink, texture=1, relief=0.2, contour=0.0),
    ]
    backdrop = Paint(ground, _similar_color(ground, rng, 0.2), texture=0, relief=0.0, contour=0.0)
    relief, spread = rng.uniform(0.0, 0.3), 0.25
    scenery = [
        Paint(
            _similar_color(ground, rng, spread),
            _similar_color(ground, rng, spread),
            texture=0,
            relief=relief,
            contour=0.0,
        )
        for _ in SCENERY
    ]
    things = []
    for i in range(MAX_THINGS):
        base = contrasting_color()
        things.append(Paint(base, mark_color(base), texture=1 + i % 2, relief=1.0, contour=CONTOUR))
    return [*coats, backdrop, *scenery, *things]


def _noise(rng: np.random.Generator, cells: int, n: int) -> np.ndarray:
    """Draw smooth noise, (n, n): interpolate `cells` x `cells` random values. n changes only the resolution."""
    values = rng.standard_normal((cells, cells), dtype=np.float32)
    return cv2.resize(values, (n, n), interpolation=cv2.INTER_CUBIC)


def draw_textures(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """Draw the textures that a paint table refers to, each (n, n) in [0, 1]."""
    return [_texture(rng, n) for _ in range(3)]


def _texture(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw a texture, (n, n) in [0, 1]: stripes, spots, patches, speckles or clouds, of random scale and angle."""
    kind, angle, waves = rng.integers(5), rng.uniform(0, np.pi), rng.uniform(5, 14)
    threshold, sharpness = rng.uniform(0.0, 0.5), rng.uniform(1.5, 5)
    t = np.arange(n, dtype=np.float32) / n * (2 * math.pi * waves)
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = cos * t + sin * t[:, None], cos * t[:, None] - sin * t
    if kind == 0:
        field = np.sin(u + 1.3 * _noise(rng, 8, n))
    elif kind == 1:
        warp = 0.8 * _noise(rng, 10, n)
        field = 1.4 * np.sin(u + warp) * np.sin(v + warp)
    else:
        field = _noise(rng, (12, 28, 5)[kind - 2], n)
    return np.clip(sharpness * (field - threshold) + 0.5, 0, 1)


def _blur_scenery(image: np.ndarray, *, is_scenery: np.ndarray, sigma: float) -> np.ndarray:
    """Blur the scenery with standard deviation `sigma`, in pixels. Other pixels neither change nor enter the blur."""
    weight = is_scenery.astype(np.float32)
    blurred: np.ndarray = cv2.GaussianBlur(image * weight[..., None], (0, 0), sigma)
    blurred /= cv2.GaussianBlur(weight, (0, 0), sigma)[..., None] + 1e-6
    return np.where(is_scenery[..., None], blurred, image)


def paint(
    canvas: np.ndarray, rows: np.ndarray, paints: list[Paint], textures: list[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """Render a canvas with relief, contours, shadows and light.

    Args:
        canvas: (n, n, 2) uint8, number and part of the visible piece.
        rows: Row of the paint table for each piece number.
        textures: The textures that `Paint.texture` counts, each (n, n) in [0, 1].

    Returns:
        (n, n, 3) uint8, RGB.
    """
    n = len(canvas)
    piece = canvas[..., 0]
    base, to_mark, texture, relief, contour = (
        np.take(np.array(column, np.float32)[rows], piece, axis=0)
        for column in zip(*((p.base, p.mark - p.base, *p[2:]) for p in paints), strict=True)
    )
    image = base + to_mark * np.choose(texture.astype(np.uint8), textures)[..., None]

    image = _blur_scenery(image, is_scenery=texture == 0, sigma=rng.uniform(*BLUR) * n)

    inside = np.ones((n, n), np.uint8)  # 0 on the border between two pieces
    inside[:, 1:] &= piece[:, 1:] == piece[:, :-1]
    inside[1:] &= piece[1:] == piece[:-1]
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 3) / n
    slope = 1 - np.minimum(distance / 0.07, 1)
    height = cv2.GaussianBlur(np.sqrt(1 - slope * slope), (0, 0), 0.01 * n)
    light_angle = rng.uniform(-0.9, 0.9)  # radians from straight above
    across, down = 0.012 * n * math.sin(light_angle), -0.012 * n * math.cos(light_angle)
    light = across * cv2.Sobel(height, cv2.CV_32F, 1, 0)
    light += down * cv2.Sobel(height, cv2.CV_32F, 0, 1)
    light = 1 + relief * (0.35 * np.clip(light, -1, 1) - 0.1 * (1 - height))
    light *= 1 - contour * np.clip(1.6 - distance / 0.006, 0, 1)

    solid = (texture > 0).astype(np.float32)  # animals and things cast shadows, scenery does not
    coarse = cv2.resize(solid, (48, 48), interpolation=cv2.INTER_AREA)
    # shadows are moved by two cells, away from the light
    shadow_shift = np.array([[1, 0, -2 * math.sin(light_angle)], [0, 1, 2]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(coarse, shadow_shift, (48, 48)), (0, 0), 1.5)
    shadow = cv2.resize(shadow, (n, n), interpolation=cv2.INTER_LINEAR)
    light *= 1 - 0.4 * shadow * (1 - solid)

    light *= 1 + 0.1 * _noise(rng, 3, n) + 0.03 * _noise(rng, 96, n)  # uneven light and grain
    return np.clip(image * light[..., None] * 255, 0, 255).astype(np.uint8)
