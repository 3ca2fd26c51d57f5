"""Look at masks of images: which names their values have, and what kind of masks they are."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from semmae.console.tracking import tracked
from semmae.data import decoding
from semmae.sharding.sources.folder import FolderMasks, Tree

SAMPLE_SECONDS = 3.0  # after this time, no more masks are decoded
MaskKind = Literal["foreground", "parts", "classes"]


@dataclass(frozen=True)
class MaskSurvey:
    """What is known about the masks of a person.

    Attributes:
        folder: Their folder in the tree of the images.
        kind: `foreground`: 0 is the background and 1 the object; `parts`: 0 is the background; `classes`: 0 is a class.
        names: The name of each value.
        reason: Why this kind was chosen.
        masked: Number of images that have a mask.
        decoded: Number of masks that were decoded.
        broken: Paths of images whose mask cannot be used, with the reason.
    """

    folder: str
    kind: MaskKind
    names: list[str]
    reason: str
    masked: int
    decoded: int
    broken: list[tuple[str, str]]


def survey_masks(
    path: Path, kind: str, folder: str, *, mask_kind: MaskKind | None = None, names: list[str] | None = None
) -> MaskSurvey:
    """Decode masks for a few seconds, and describe them.

    Args:
        path: The folder or tar of the images.
        kind: Its kind, `folder` or `tar`.
        folder: The folder of the masks in the tree. The mask of a/7.jpg is <folder>/a/7.png.
        mask_kind: The kind of the masks; None: chosen by their values.
        names: The names of the values; None: numbered.

    Raises:
        ValueError: No image, or none of a split, has a mask, none of the masks can be decoded, or `names` are too few.
    """
    masks = FolderMasks(kind="parts", names=["background", "part"], folder=folder)
    tree = Tree(kind=kind, path=str(path), splits=None, val_fraction=None, labels=False, masks=masks)  # type: ignore[arg-type]
    images = tree.list_items(seed=0)
    items = [item for item in images if item.mask is not None]
    for split in ("train", "val"):  # scores need masks in both
        if split in {item.split for item in images} - {item.split for item in items}:
            raise ValueError(f"no image in the split {split} has a mask in {folder}; add masks, or remove --masks")
    values: Counter[int] = Counter()
    border: Counter[int] = Counter()
    broken: list[tuple[str, str]] = []
    decoded, end = 0, time.monotonic() + SAMPLE_SECONDS
    for index in tracked(np.random.default_rng(0).permutation(len(items)), len(items), "masks"):
        item = items[index]
        assert item.mask is not None
        try:
            mask = decoding.decode_mask(item.mask.read())
        except (ValueError, OSError) as error:
            broken.append((item.path, str(error)))
            continue
        values.update(np.unique(mask).tolist())
        border.update(_border(mask).tolist())
        decoded += 1
        if time.monotonic() > end:
            break
    if not decoded:
        raise ValueError(f"none of {len(broken)} masks in {folder} can be used, e.g. that of {': '.join(broken[0])}")
    largest = max((value for value in values if value != decoding.IGNORE), default=0)
    if names is not None and len(names) <= largest:
        raise ValueError(
            f"--mask-names has {len(names)} names, but masks hold the value {largest}; expected {largest + 1} names "
            "or more, from value 0 on"
        )
    chosen, reason = (mask_kind, "--mask-kind") if mask_kind else choose_kind(largest, border)
    return MaskSurvey(
        folder, chosen, names or default_names(chosen, max(largest + 1, 2)), reason, len(items), decoded, broken
    )


def choose_kind(largest: int, border: Counter[int]) -> tuple[MaskKind, str]:
    """Choose the kind of masks by their values.

    Args:
        largest: The largest value, except `IGNORE`.
        border: Number of pixels of each value on the borders of the masks.

    Returns:
        The kind, and the reason.
    """
    if largest <= 1:
        return "foreground", "the masks hold 0 and 1 only"
    share = border[0] / max(sum(count for value, count in border.items() if value != decoding.IGNORE), 1)
    if share > 0.5:
        return "parts", f"the masks hold 0 to {largest}, and 0 covers {share:.0%} of their borders, as a background"
    return "classes", f"the masks hold 0 to {largest}, and 0 covers {share:.0%} of their borders, as no background"


def default_names(kind: MaskKind, count: int) -> list[str]:
    """Return names for the values 0 to `count - 1`."""
    if kind == "foreground":
        return ["background", "foreground"]
    if kind == "parts":
        return ["background", *(f"part_{value}" for value in range(1, count))]
    return [f"class_{value}" for value in range(count)]


def check_kind(kind: str | None) -> MaskKind | None:
    """Return a kind that a person has given; raise ValueError if there is no such kind."""
    if kind is not None and kind not in get_args(MaskKind):
        raise ValueError(f"--mask-kind is {kind!r}; expected {', '.join(get_args(MaskKind))}")
    return kind  # type: ignore[return-value]


def _border(mask: np.ndarray) -> np.ndarray:
    """Return the values along the four sides of a mask."""
    return np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
