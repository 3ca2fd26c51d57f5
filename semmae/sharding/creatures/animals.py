"""Functions that draw an animal of each species as a list of pieces, with random proportions in a random pose.

Animals face right. The y axis points down, and the unit is about one body length. The pieces are ordered from the far
side of the animal to its near side. A piece names its coat only; `paint` chooses the colors of the coats.
"""

from collections.abc import Callable

import numpy as np

from semmae.sharding.creatures.limbs import eye, gait, leg, smile
from semmae.sharding.creatures.shapes import (
    BODY,
    EARS,
    FAR,
    FUR,
    HEAD,
    INK,
    LEGS,
    SNOUT,
    TAIL,
    TRIM,
    WHITE,
    WINGS,
    Piece,
    blob,
    oval,
    transform,
    tube,
)

Pose = Callable[[np.random.Generator], list[Piece]]


def _cat(rng: np.random.Generator) -> list[Piece]:
    far, near = gait(rng, [(-0.42, 0.1), (-0.3, 0.1)], [(0.3, 0.1), (0.42, 0.1)], 0.4, 0.1, 0.11)
    curl = rng.uniform(-0.35, 0.35)
    tail = tube(
        [(-0.5, -0.05), (-0.78, -0.15), (-0.85 - curl / 3, -0.45), (-0.8 + curl, -0.78)],
        [0.09, 0.085, 0.085, 0.075],
    )
    slim = rng.uniform(0.22, 0.28)
    body = tube([(-0.4, 0), (0, 0.02), (0.38, -0.02)], [slim + 0.02, slim, slim + 0.01])
    perk = rng.uniform(-0.05, 0.05)
    head = [
        Piece(np.array([(-0.02, -0.18), (0.14 + perk, -0.47), (0.24, -0.12)]), EARS, FAR),
        Piece(oval(0, 0, 0.31, 0.265), HEAD, FUR),
        Piece(np.array([(-0.27, -0.08), (-0.2 + perk, -0.49), (0.03, -0.22)]), EARS, FUR),
        Piece(np.array([(-0.2, -0.16), (-0.17 + perk, -0.39), (-0.04, -0.23)]), EARS, TRIM),
        Piece(oval(0.19, 0.1, 0.15, 0.11), SNOUT, FUR),
        Piece(oval(0.27, 0.05, 0.05, 0.04), SNOUT, TRIM),
        smile(0.26, 0.16, 0.15),
        *eye(rng, 0.06, -0.04, 0.085),
    ]
    neck = rng.uniform(-0.12, 0.12)
    return [
        *far, Piece(tail, TAIL, FUR), Piece(body, BODY, FUR), *near,
        *transform(head, 0.55, -0.3 + neck, rng.uniform(-0.3, 0.3), rng.uniform(0.95, 1.15)),
    ]  # fmt: skip


def _rabbit(rng: np.random.Generator) -> list[Piece]:
    crouch = rng.uniform(-0.06, 0.08)
    body = blob(
        [(-0.5, 0.12), (-0.42, -0.25 + crouch), (-0.05, -0.36 + crouch), (0.33, -0.16),
         (0.36, 0.14), (0.05, 0.33), (-0.3, 0.35)]
    )  # fmt: skip
    kick, step = rng.uniform(-0.35, 0.35, 2)
    hind = [
        Piece(oval(-0.22, 0.17, 0.25, 0.23, kick), LEGS, FUR),
        Piece(tube([(-0.32, 0.38), (0.02, 0.4 + 0.1 * kick)], [0.085, 0.075]), LEGS, FUR, True),
    ]
    flop = rng.uniform(-0.32, 0.25)
    ear = [(0, -0.1), (-0.08, -0.38), (-0.1 + flop, -0.68)]
    shape, inner = tube(ear, [0.07, 0.11, 0.06]), tube(ear[1:], [0.055, 0.025])
    head = [
        *transform([Piece(shape, EARS, FAR)], 0.1, -0.06, rng.uniform(0.1, 0.45)),
        Piece(oval(0, 0, 0.27, 0.23, 0.15), HEAD, FUR),
        *transform([Piece(shape, EARS, FUR), Piece(inner, EARS, TRIM)], -0.1, -0.06, -0.1),
        Piece(oval(0.2, 0.08, 0.11, 0.09), SNOUT, FUR),
        Piece(oval(0.27, 0.04, 0.04, 0.033), SNOUT, TRIM),
        smile(0.25, 0.13, 0.1),
        *eye(rng, 0.06, -0.04, 0.08),
    ]
    return [
        *leg(0.3, 0.12, 0.3, 0.075, step, 0.2, 0.09, FAR),
        Piece(oval(-0.53, 0.06, 0.15, 0.14), TAIL, TRIM),
        Piece(body, BODY, FUR), *hind,
        *leg(0.2, 0.14, 0.3, 0.075, -step, 0.2, 0.09),
        *transform(head, 0.36, -0.3 + crouch, rng.uniform(-0.3, 0.25), rng.uniform(0.95, 1.1)),
    ]  # fmt: skip


def _elephant(rng: np.random.Generator) -> list[Piece]:
    far, near = gait(rng, [(-0.36, 0.2), (-0.18, 0.18)], [(0.2, 0.2), (0.36, 0.18)], 0.44, 0.125, 0.1, 0.3)
    swish, raised = rng.uniform(-0.1, 0.1), rng.uniform(-0.55, 0.25)
    tail = tube([(-0.5, -0.1), (-0.64, 0.05), (-0.68 + swish, 0.3)], [0.045, 0.04, 0.06])
    body = oval(0, 0, 0.56, rng.uniform(0.36, 0.42))
    flap = rng.uniform(0.85, 1.15)
    ear = blob(
        [(0.0, -0.25), (-0.3, -0.33), (-0.46, -0.08), (-0.32, 0.27), (-0.1, 0.25), (0.03, 0.0)]
    ) * (flap, 1)  # fmt: skip
    reach = 0.5 + 0.35 * max(0.0, -raised)
    trunk = tube(
        [(0.17, 0.02), (0.36, 0.14), (0.42, 0.36 + 0.3 * raised), (reach, 0.55 + raised)],
        [0.18, 0.13, 0.095, 0.075],
    )
    head = [
        Piece(oval(0, 0, 0.33, 0.32), HEAD, FUR),
        Piece(trunk, SNOUT, FUR, True),
        Piece(tube([(0.18, 0.2), (0.3, 0.32), (0.44, 0.3)], [0.055, 0.045, 0.015]), SNOUT, WHITE),
        Piece(ear, EARS, FUR),
        *eye(rng, 0.15, -0.08, 0.07),
    ]
    return [
        *far, Piece(tail, TAIL, FUR), Piece(body, BODY, FUR), *near,
        *transform(head, 0.56, -0.22 + rng.uniform(-0.06, 0.06), rng.uniform(-0.2, 0.2)),
    ]  # fmt: skip


def _giraffe(rng: np.random.Generator) -> list[Piece]:
    far, near = gait(rng, [(-0.32, 0.1), (-0.22, 0.08)], [(0.2, 0.1), (0.3, 0.08)], 0.52, 0.1, 0.1, 0.3)
    lean, swish = rng.uniform(-0.15, 0.3), rng.uniform(-0.15, 0.1)
    tail = tube([(-0.42, -0.02), (-0.55, 0.15), (-0.56 + swish, 0.38)], [0.05, 0.05, 0.085])
    body = tube([(-0.32, 0.05), (0, 0), (0.26, -0.05)], [0.25, 0.26, 0.27])
    top = (0.52 + lean, -0.86 + 0.5 * max(lean, 0))
    neck = tube([(0.22, -0.1), (0.42 + lean / 2, -0.5), top], [0.25, 0.17, 0.14])
    horn = [
        Piece(tube([(0, 0), (-0.03, -0.24)], [0.035, 0.03]), EARS, FAR),
        Piece(oval(-0.03, -0.25, 0.055, 0.05), EARS, TRIM),
    ]
    ear = tube([(-0.12, -0.05), (-0.25, -0.1), (-0.34, -0.08)], [0.05, 0.07, 0.025])
    head = [
        *transform(horn, 0.08, -0.06, 0.2),
        Piece(oval(0, 0, 0.19, 0.15, 0.25), HEAD, FUR),
        Piece(tube([(0.1, 0.04), (0.29, 0.12)], [0.12, 0.095]), SNOUT, FUR),
        smile(0.3, 0.16, 0.14),
        *transform(horn, -0.04, -0.08),
        Piece(ear, EARS, FUR),
        *eye(rng, 0.04, -0.03, 0.07),
    ]
    return [
        *far, Piece(tail, TAIL, FUR), Piece(body, BODY, FUR), Piece(neck, BODY, FUR, True), *near,
        *transform(head, *top, rng.uniform(-0.25, 0.25), 1.3),
    ]  # fmt: skip


def _duck(rng: np.random.Generator) -> list[Piece]:
    body = blob(
        [(-0.6, -0.22), (-0.3, -0.12), (0.05, -0.2), (0.38, -0.2), (0.52, 0.05), (0.32, 0.31),
         (-0.1, 0.36), (-0.42, 0.18)]
    )  # fmt: skip
    cock = rng.uniform(-0.15, 0.15)
    tail = blob([(-0.4, 0.05), (-0.78, -0.28 + cock), (-0.72, -0.42 + cock), (-0.32, -0.16)])
    wing = blob([(0.28, -0.02), (0.1, -0.16), (-0.25, -0.14), (-0.56, -0.04), (-0.4, 0.12), (0.05, 0.2)])
    spread = rng.choice([rng.uniform(-0.1, 0.2), rng.uniform(0.5, 1.1)])
    reach, high = rng.uniform(-0.05, 0.15), rng.uniform(-0.12, 0.1)
    beak = blob([(0.15, -0.06), (0.3, -0.01), (0.46, 0.03), (0.34, 0.13), (0.15, 0.12)])
    head = [
        Piece(oval(0, 0, 0.22, 0.205), HEAD, FUR),
        Piece(beak, SNOUT, TRIM),
        smile(0.36, 0.08, 0.16),
        *eye(rng, 0.06, -0.05, 0.075),
    ]
    nape = (0.45 + reach, -0.5 + high)
    neck = tube([(0.3, 0), (0.43, -0.22), nape], [0.2, 0.13, 0.13])
    a, b = rng.uniform(-0.5, 0.5, 2)
    return [
        *leg(0.08, 0.28, 0.3, 0.05, a, 0.1, 0.13, TRIM),
        Piece(tail, TAIL, FUR), Piece(body, BODY, FUR), Piece(neck, BODY, FUR, True),
        *leg(-0.08, 0.28, 0.3, 0.05, b, 0.1, 0.13, TRIM),
        *transform([Piece(wing, WINGS, FUR)], 0.1, 0.03, spread, rng.uniform(0.95, 1.2)),
        *transform(head, *nape, rng.uniform(-0.3, 0.3), rng.uniform(1.0, 1.15)),
    ]  # fmt: skip


def _fish(rng: np.random.Generator) -> list[Piece]:
    deep, bow = rng.uniform(0.3, 0.42), rng.uniform(-0.15, 0.15)
    body = tube([(-0.5, bow / 2), (-0.25, 0), (0.1, 0), (0.48, 0.02)], [0.09, 0.66 * deep, deep, 0.16])
    fork = rng.uniform(0.24, 0.36)
    tail = blob(
        [(-0.45, bow / 2), (-0.7, bow - fork), (-0.92, bow - fork), (-0.8, bow),
         (-0.92, bow + fork), (-0.7, bow + fork)]
    )  # fmt: skip
    crest, keel = -deep - rng.uniform(0.12, 0.26), deep + 0.16
    dorsal = blob([(-0.3, -0.4 * deep), (-0.3, crest), (0.05, crest), (0.28, -0.6 * deep)])
    belly = blob([(-0.12, 0.7 * deep), (-0.22, keel), (0.0, keel), (0.12, 0.8 * deep)])
    paddle = blob([(0.08, 0), (-0.1, -0.1), (-0.3, -0.06), (-0.28, 0.12), (-0.06, 0.1)])
    cheek = tube([(0.3, 0), (0.5, 0.02)], [0.78 * deep, 0.17])
    return [
        Piece(tail, TAIL, FUR), Piece(dorsal, WINGS, FUR), Piece(belly, WINGS, FAR),
        Piece(body, BODY, FUR), Piece(cheek, HEAD, FUR),
        *transform([Piece(paddle, WINGS, TRIM)], 0.08, 0.1, rng.uniform(-0.5, 0.5), 1.1),
        Piece(oval(0.63, 0.06, 0.07, 0.085), SNOUT, TRIM), smile(0.64, 0.1, 0.14),
        *eye(rng, 0.38, -0.07, 0.1),
    ]  # fmt: skip


def _turtle(rng: np.random.Generator) -> list[Piece]:
    dome = rng.uniform(0.4, 0.52)
    shell = blob(
        [(-0.6, 0.14), (-0.48, -0.4 * dome), (-0.2, -0.85 * dome), (0.12, -0.87 * dome),
         (0.42, -0.45 * dome), (0.58, 0.14), (0.3, 0.22), (-0.3, 0.22)]
    )  # fmt: skip
    rim = tube([(-0.56, 0.14), (0, 0.2), (0.55, 0.14)], [0.08, 0.085, 0.08])
    far, near = gait(rng, [(-0.36, 0.2), (-0.2, 0.2)], [(0.3, 0.2), (0.42, 0.2)], 0.24, 0.1, 0.12)
    out, up = rng.uniform(0.68, 0.86), rng.uniform(-0.3, 0.1)
    neck = tube([(0.4, 0.1), (0.58, 0.08), (out, up)], [0.12, 0.11, 0.11])
    head = [
        Piece(oval(0, 0, 0.21, 0.175), HEAD, FUR),
        Piece(oval(0.16, 0.04, 0.1, 0.09), SNOUT, FUR, True),
        smile(0.22, 0.09, 0.15),
        *eye(rng, 0.06, -0.04, 0.075),
    ]
    wag = rng.uniform(-0.1, 0.1)
    tail = tube([(-0.5, 0.15), (-0.7, 0.2), (-0.82, 0.2 + wag)], [0.09, 0.06, 0.02])
    return [
        *far, Piece(tail, TAIL, FUR), Piece(neck, BODY, FUR),
        *transform(head, out, up - 0.02, rng.uniform(-0.3, 0.3), 1.1),
        *near, Piece(shell, BODY, FUR), Piece(rim, BODY, TRIM),
    ]  # fmt: skip


def _crocodile(rng: np.random.Generator) -> list[Piece]:
    hind, fore = [(-0.3, 0.1), (-0.18, 0.08)], [(0.26, 0.1), (0.38, 0.08)]
    far, near = gait(rng, hind, fore, 0.28, 0.1, 0.1)
    sway, gape, lift = rng.uniform(-0.5, 0.15), rng.uniform(0.05, 0.5), rng.uniform(-0.15, 0.05)
    spine = [(-0.35, 0), (-0.66, 0.06), (-0.88, 0.03 + 0.4 * sway), (-1.02, sway)]
    tail = tube(spine, [0.23, 0.17, 0.11, 0.03])
    ridge = [
        Piece(np.array([(x - 0.09, 0.0), (x - 0.01, -0.37), (x + 0.1, 0.0)]), BODY, FAR) for x in (-0.4, -0.2, 0.0, 0.2)
    ]
    teeth = [Piece(np.array([(x, 0), (x + 0.045, 0.12), (x + 0.09, 0)]), SNOUT, WHITE) for x in (0.19, 0.32, 0.45)]
    lower = Piece(tube([(0.0, 0.06), (0.5, 0.07)], [0.11, 0.08]), SNOUT, FAR)
    upper = Piece(tube([(0.02, 0), (0.3, -0.01), (0.52, -0.02)], [0.16, 0.105, 0.105]), SNOUT, FUR)
    head = [
        *transform([lower], 0.02, 0.06, 0.5 * gape), *transform(teeth, 0.04, 0.06), upper,
        Piece(oval(-0.04, -0.02, 0.23, 0.19), HEAD, FUR),
        Piece(oval(0.02, -0.17, 0.11, 0.1), HEAD, FUR, True),
        Piece(oval(0.54, -0.11, 0.04, 0.035), SNOUT, INK), *eye(rng, 0.03, -0.18, 0.085),
    ]  # fmt: skip
    body = tube([(-0.36, 0), (0, 0.02), (0.38, -0.03)], [0.24, 0.27, 0.22])
    return [
        *far, *ridge, Piece(body, BODY, FUR), Piece(tail, TAIL, FUR, True), *near,
        *transform(head, 0.54, -0.1 + lift, rng.uniform(-0.25, 0.1), 1.05),
    ]  # fmt: skip


ANIMALS: dict[str, Pose] = {
    "cat": _cat, "rabbit": _rabbit, "elephant": _elephant, "giraffe": _giraffe,
    "duck": _duck, "fish": _fish, "turtle": _turtle, "crocodile": _crocodile,
}  # fmt: skip
