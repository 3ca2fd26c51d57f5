"""Draw a validation split, stratified by class, for sources that have none. Groups of images stay together."""

from collections import Counter, defaultdict

import numpy as np

from semmae.core import rng
from semmae.sharding.sources.source_item import SourceItem


def split_off_val(items: list[SourceItem], fraction: float, *, seed: int, location: str) -> list[SourceItem]:
    """Move a fraction of the images of each class from train to val.

    All images of a group move together. An image without a group forms its own group. A group with several classes
    belongs to its most frequent class. The groups of a class are sorted by a hash of their name and the seed.
    The first groups move, as many as bring the share of moved images closest to `fraction`. Adding an image without a
    group changes the split of at most one other image.

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
