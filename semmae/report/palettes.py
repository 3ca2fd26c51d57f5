"""Choose colors that people with and without color blindness can distinguish, for any number of parts."""

import numpy as np
from jaxtyping import Float, UInt8

PALETTES = {
    "okabe_ito": ("e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7"),  # Okabe & Ito 2008, no black
    "tol_bright": ("4477aa", "ee6677", "228833", "ccbb44", "66ccee", "aa3377"),  # Tol 2021, no gray
}
GRAY = (160, 160, 160)  # the color of the background in legends
LIGHTNESS_RANGE = (0.45, 0.9)  # OKLab lightness of additional colors; excludes nearly black and nearly white

# Linear RGB as trichromats, protanopes and deuteranopes perceive it (Vienot, Brettel & Mollon 1999).
VISION_TYPES = np.array(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    ]
)
# OKLab (Ottosson 2020): linear RGB -> cone responses -> cube root -> lightness and two opponent axes.
RGB_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
CONES_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def make_palette(name: str, count: int) -> UInt8[np.ndarray, "{count} 3"]:
    """Return `count` RGB colors.

    The named palette comes first. Each further color is the one that differs most from all colors before it.

    Args:
        name: A key of PALETTES.
        count: The number of colors.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in PALETTES:
        raise ValueError(
            f"unknown colors: {name!r}; expected one of {', '.join(PALETTES)}; set report.colors or --colors"
        )
    colors = [list(bytes.fromhex(color)) for color in PALETTES[name]]
    levels = np.linspace(0, 255, 8).round()
    candidates = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    lightness = perceived_oklab(candidates)[0, :, 0]
    candidates = candidates[(lightness > LIGHTNESS_RANGE[0]) & (lightness < LIGHTNESS_RANGE[1])]
    while len(colors) < count:
        farthest = perceived_distance(candidates, np.array(colors)).min(axis=1).argmax()
        colors.append(candidates[farthest].tolist())
    return np.array(colors[:count], dtype=np.uint8).reshape(count, 3)


def perceived_oklab(colors: np.ndarray) -> Float[np.ndarray, "3 n 3"]:
    """Convert RGB colors in [0, 255] to OKLab, as trichromats, protanopes and deuteranopes perceive them."""
    srgb = colors / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    cones = np.einsum("ij,ejk,nk->eni", RGB_TO_CONES, VISION_TYPES, linear)
    return np.cbrt(cones.clip(min=0)) @ CONES_TO_LAB.T


def perceived_distance(a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, "n m"]:
    """Return the OKLab distance between RGB colors for the type of vision that separates them least.

    A distance of 0.02 is just noticeable; black and white are 1 apart.
    """
    return np.linalg.norm(perceived_oklab(a)[:, :, None] - perceived_oklab(b)[:, None], axis=-1).min(axis=0)
