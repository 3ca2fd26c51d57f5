"""Colors that tell parts apart for everybody: published palettes, and as many more as there are parts.

- `PALETTES`: by name, for people without and with color blindness.
- `palette`: the first colors of one; beyond its end, each is the one that is farthest from all before it.
- `seen`, `distance`: colors as three kinds of eyes see them, and how different two of them look to the worst of these.
"""

import numpy as np
from jaxtyping import Float, UInt8

PALETTES = {
    "okabe_ito": ("e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7"),  # Okabe & Ito 2008, no black
    "tol_bright": ("4477aa", "ee6677", "228833", "ccbb44", "66ccee", "aa3377"),  # Tol 2021, no gray
}
GRAY = (160, 160, 160)  # of the background, where it has a color at all
LIGHTNESS = (0.45, 0.9)  # OKLab's, of added colors: neither lost in shadows nor in highlights

# Linear RGB as protanopes and deuteranopes see it (Vienot, Brettel & Mollon 1999), beside as it is.
EYES = np.array(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    ]
)
# OKLab (Ottosson 2020): linear RGB -> cones -> cube root -> lightness and two opponent axes.
CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
OPPONENT = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def palette(name: str, count: int) -> UInt8[np.ndarray, "{count} 3"]:
    """`count` colors, RGB; ValueError for a name that is none of PALETTES."""
    if name not in PALETTES:
        raise ValueError(f"there are no colors {name!r}; expected (report.colors) one of {', '.join(PALETTES)}")
    colors = [list(bytes.fromhex(color)) for color in PALETTES[name]]
    steps = np.linspace(0, 255, 8).round()
    candidates = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    lightness = seen(candidates)[0, :, 0]
    candidates = candidates[(lightness > LIGHTNESS[0]) & (lightness < LIGHTNESS[1])]
    while len(colors) < count:
        farthest = distance(candidates, np.array(colors)).min(axis=1).argmax()
        colors.append(candidates[farthest].tolist())
    return np.array(colors[:count], dtype=np.uint8).reshape(count, 3)


def seen(colors: np.ndarray) -> Float[np.ndarray, "3 n 3"]:
    """RGB colors 0...255 in OKLab, to trichromats, protanopes and deuteranopes."""
    share = colors / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    cones = np.einsum("ij,ejk,nk->eni", CONES, EYES, linear)
    return np.cbrt(cones.clip(min=0)) @ OPPONENT.T


def distance(a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, "n m"]:
    """How different colors look to those who see it least, in OKLab: 0.02 is just noticeable, black to white 1."""
    return np.linalg.norm(seen(a)[:, :, None] - seen(b)[:, None], axis=-1).min(axis=0)
