"""Draw the surroundings of an animal: scenery behind it, and things behind it or in front of it.

Things have the same kinds of shapes and paints as animals. The distribution of surroundings is equal for all species.
"""

import numpy as np

from semmae.sharding.creatures.paint import MAX_THINGS, SCENERY, THINGS
from semmae.sharding.creatures.shapes import Piece, blob, oval, rotate, transform, tube

MAX_TILT = 0.35  # radians, in the image plane


def draw_surroundings(rng: np.random.Generator) -> tuple[list[Piece], list[Piece]]:
    """Draw the pieces behind the animal and the pieces in front of it, in the unit square."""
    background = _SCENERIES[rng.integers(len(_SCENERIES))](rng)
    foreground: list[Piece] = []
    for coat in THINGS[: rng.integers(MAX_THINGS + 1)]:
        thing = _THINGS[rng.integers(len(_THINGS))](rng, coat)
        size, angle = rng.uniform(0.07, 0.17), rng.uniform(-MAX_TILT, MAX_TILT)
        x, y = rng.uniform(0.03, 0.97, 2)
        if rng.random() < 0.2:
            foreground += transform(thing, x, rng.uniform(0.93, 1.0), angle, size)
        else:
            background += transform(thing, x, y, angle, size)
    return background, foreground


def _no_scenery(rng: np.random.Generator) -> list[Piece]:
    return []


def _layers(rng: np.random.Generator) -> list[Piece]:
    """Draw hills, dunes or waves: bands with wavy upper edges. Each band covers the previous one."""
    x = np.linspace(-0.6, 1.6, 60)
    tops = np.sort(rng.uniform(0.05, 0.95, rng.integers(2, 7)))
    tilt = rng.uniform(-0.25, 0.25)
    pieces = []
    for i, top in enumerate(tops):
        y = top + rng.uniform(0.01, 0.06) * np.sin(rng.uniform(4, 30) * x + rng.uniform(0, 6.3))
        band = np.concatenate([np.stack([x, y], axis=1), [(1.6, 1.8), (-0.6, 1.8)]])
        pieces.append(Piece(rotate(band - 0.5, tilt) + 0.5, 0, SCENERY[i % 3]))
    return pieces


def _scatter(rng: np.random.Generator) -> list[Piece]:
    """Draw foliage, pebbles or petals: copies of one outline all over the picture."""
    slim, point = rng.uniform(0.25, 1.0), rng.uniform(0, 0.9)
    outline = blob([(-1, 0), (-point, -slim), (0.3, -slim), (1, 0), (0.3, slim), (-point, slim)])
    wind, spread, grain = rng.uniform(0, 6.3), rng.uniform(0.1, 3.2), rng.uniform(0.03, 0.09)
    return [
        Piece(
            rotate(outline * grain * rng.uniform(0.6, 1.4), wind + rng.uniform(-spread, spread))
            + rng.uniform(-0.05, 1.05, 2), 0, SCENERY[rng.integers(3)],
        )
        for _ in range(rng.integers(20, 70))
    ]  # fmt: skip


def _blades(rng: np.random.Generator) -> list[Piece]:
    """Draw grass, reed or corals that grow from the ground."""
    tall, wide = rng.uniform(0.2, 0.7), rng.uniform(0.01, 0.035)
    pieces = []
    for foot in rng.uniform(-0.05, 1.05, rng.integers(10, 34)):
        bow, height = rng.uniform(-0.2, 0.2), tall * rng.uniform(0.5, 1.5)
        spine = [(foot, 1.05), (foot + bow / 3, 1.05 - height / 2), (foot + bow, 1.05 - height)]
        blade = tube(spine, [1.5 * wide, 1.2 * wide, 0.4 * wide])
        pieces.append(Piece(blade, 0, SCENERY[rng.integers(3)]))
    return pieces


def _stone(rng: np.random.Generator, coat: int) -> list[Piece]:
    return [Piece(_closed_curve(rng.uniform(0.7, 1.2, 7)), 0, coat)]


def _log(rng: np.random.Generator, coat: int) -> list[Piece]:
    thick = rng.uniform(0.3, 0.5)
    trunk = tube([(-1.3, 0), (0, rng.uniform(-0.2, 0.2)), (1.3, 0)], [thick] * 3)
    return [Piece(trunk, 0, coat), Piece(oval(1.4, 0, 0.5 * thick, 0.85 * thick), 0, coat)]


def _balloon(rng: np.random.Generator, coat: int) -> list[Piece]:
    string = tube([(0, 1), (rng.uniform(-0.3, 0.3), 1.6), (0, 2.2)], [0.06, 0.06, 0.06])
    return [Piece(string, 0, coat), Piece(oval(0, 0, 0.85, rng.uniform(0.85, 1.15)), 0, coat)]


def _bush(rng: np.random.Generator, coat: int) -> list[Piece]:
    puffs = [(-0.7, 0.1), (0.7, 0.1), (-0.3, -0.4), (0.35, -0.45), (0, 0.1)]
    return [Piece(oval(x, y, *rng.uniform(0.5, 0.75, 2)), 0, coat, joined=i > 0) for i, (x, y) in enumerate(puffs)]


def _toadstool(rng: np.random.Generator, coat: int) -> list[Piece]:
    stem = tube([(0, 0), (rng.uniform(-0.2, 0.2), 1.1)], [0.25, 0.35])
    cap = blob([(-1, 0.1), (-0.7, -0.6), (0, -0.9), (0.7, -0.6), (1, 0.1), (0, 0.25)])
    return [Piece(stem, 0, coat), Piece(cap, 0, coat)]


def _star(rng: np.random.Generator, coat: int) -> list[Piece]:
    dent, arms = rng.uniform(0.4, 0.7), rng.integers(4, 7)
    return [Piece(_closed_curve(np.tile([1.15, dent], arms)), 0, coat)]


def _closed_curve(radii: np.ndarray) -> np.ndarray:
    """Make a closed curve through points at equal angles around the origin, at distances `radii` from it."""
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return blob(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1))


_SCENERIES = (_no_scenery, _layers, _scatter, _scatter, _blades)
_THINGS = (_stone, _log, _balloon, _bush, _toadstool, _star)
