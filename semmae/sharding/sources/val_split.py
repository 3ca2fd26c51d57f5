"""A seeded validation split for sources without one: a share of train, class by class, without splitting groups."""

from collections import Counter, defaultdict

import numpy as np

from semmae.core import rng
from semmae.sharding.sources.source_item import SourceItem


def split_off_val(items: list[SourceItem], fraction: float, *, seed: int, location: str) -> list[SourceItem]:
    """Move a share of each class of train to val.

    Groups move as one; an item without a group is a group of its own. The group name and the seed hash to a number, and
    the groups of a class with the smallest numbers move. Their number brings the share of the images closest to
    `fraction`. A group with several classes counts for its most frequent class. A new image without a group moves at
    most one other image to the other split.

    Args:
        location: Path or name of the source, for errors.

    Raises:
        ValueError: The source has a val split, or no group would move.
    """
    if any(item.split == "val" for item in items):
        raise ValueError(f"{location} has a val split of its own; set its val_fraction to null in params.yaml")
    groups: dict[tuple[str, str], list[SourceItem]] = defaultdict(list)
    for item in items:
        if item.split == "train":
            groups[("val", item.path) if item.group is None else ("val group", item.group)].append(item)
    groups_of_class = defaultdict(list)
    for name, members in groups.items():
        ((label, _),) = Counter(item.label for item in members).most_common(1)
        groups_of_class[label].append((rng.fold(seed, *name), members))
    moved: set[str] = set()
    for hashed_groups in groups_of_class.values():
        ordered = [members for _, members in sorted(hashed_groups, key=lambda pair: pair[0])]
        sizes = np.cumsum([0, *map(len, ordered)])
        count = int(np.argmin(np.abs(sizes - round(fraction * int(sizes[-1])))))
        moved.update(item.path for members in ordered[:count] for item in members)
    if not moved:
        raise ValueError(
            f"{location}: val_fraction {fraction} moves no image to val: train has only {len(groups)} groups in "
            f"{len(groups_of_class)} classes. Increase val_fraction in params.yaml, or use smaller groups"
        )
    return [item._replace(split="val") if item.path in moved else item for item in items]
