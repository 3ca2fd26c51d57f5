"""Draw eyes, mouths and legs, which several species share."""

from collections.abc import Sequence

import numpy as np

from semmae.sharding.creatures.shapes import EYES, FAR, FUR, INK, LEGS, SNOUT, WHITE, Number, Piece, oval, tube


def eye(rng: np.random.Generator, x: Number, y: Number, r: Number) -> list[Piece]:
    """Draw an eye of radius `r` at (x, y) that looks in a random direction."""
    gaze_x, gaze_y = rng.uniform(-0.1, 0.35) * r, rng.uniform(-0.25, 0.25) * r
    return [
        Piece(oval(x, y, r, r * 1.1), EYES, WHITE),
        Piece(oval(x + gaze_x, y + gaze_y, r * 0.66, r * 0.74), EYES, INK),
        Piece(oval(x + gaze_x + 0.2 * r, y + gaze_y - 0.3 * r, r * 0.26, r * 0.26), EYES, WHITE),
    ]


def smile(x: Number, y: Number, length: Number) -> Piece:
    """Draw a mouth whose front end is at (x, y)."""
    points = [(x - length, y - 0.35 * length), (x - 0.4 * length, y), (x, y - 0.1 * length)]
    return Piece(tube(points, [0.012, 0.02, 0.012]), SNOUT, INK)


def leg(
    x: Number,
    y: Number,
    length: Number,
    thick: Number,
    swing: Number,
    bend: Number,
    foot: Number,
    coat: int = FUR,
) -> list[Piece]:
    """Draw a leg from the hip (x, y) down.

    Args:
        swing: Angle of the thigh forwards, in radians; at 0 the thigh hangs down.
        bend: Angle of the shin backwards, relative to the thigh, in radians.
        foot: Radius of the paw along the ground.
    """
    knee = (x + 0.5 * length * np.sin(swing), y + 0.5 * length * np.cos(swing))
    ankle = (
        knee[0] + 0.5 * length * np.sin(swing - bend),
        knee[1] + 0.5 * length * np.cos(swing - bend),
    )
    shape = tube([(x, y), knee, ankle], [thick * 1.25, thick, thick * 0.85])
    paw = oval(ankle[0] + 0.4 * foot, ankle[1] + 0.2 * thick, foot, max(0.6 * foot, 0.7 * thick))
    return [Piece(shape, LEGS, coat), Piece(paw, LEGS, coat, joined=True)]


def gait(
    rng: np.random.Generator,
    hind: Sequence[tuple[float, float]],
    fore: Sequence[tuple[float, float]],
    length: Number,
    thick: Number,
    foot: Number,
    stride: Number = 0.45,
) -> tuple[list[Piece], list[Piece]]:
    """Draw four legs in a random phase of the gait.

    Args:
        hind: Positions of the near and the far hind hip.
        fore: Positions of the near and the far fore hip.

    Returns:
        The two far legs and the two near legs.
    """
    hind_swing, fore_swing = rng.uniform(-stride, stride, 2)
    bends = rng.uniform(0, 0.5, 4)
    far = leg(*hind[1], length, thick, -hind_swing, bends[0], foot, FAR)
    far += leg(*fore[1], length, thick, -fore_swing, bends[1], foot, FAR)
    near = leg(*hind[0], length, thick, hind_swing, bends[2], foot)
    near += leg(*fore[0], length, thick, fore_swing, bends[3], foot)
    return far, near
