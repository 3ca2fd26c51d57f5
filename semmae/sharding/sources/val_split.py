"""A seeded split for sources that bring none: a fraction of train becomes val, by class, groups never torn apart."""

from collections import Counter, defaultdict

import numpy as np

from semmae.core import rng
from semmae.sharding.sources.source_item import Entry


def set_aside(found: list[Entry], fraction: float, *, seed: int, where: str) -> list[Entry]:
    """Move the `fraction` of train, class by class, to val: the groups whose names fold to the smallest numbers.

    An entry without a group is one by itself. Of each class as many groups move as come closest to the fraction of its
    images; a group with several classes counts for the commonest. A new image that is a group moves at most one other
    across. ValueError: `where` has a val split of its own, or so few groups that none would move.
    """
    if any(entry.split == "val" for entry in found):
        raise ValueError(f"{where} has a val split of its own; set its val_fraction to null in params.yaml")
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in found:
        if entry.split == "train":
            groups[("val", entry.path) if entry.group is None else ("val group", entry.group)].append(entry)
    classes = defaultdict(list)
    for name, members in groups.items():
        ((label, _),) = Counter(entry.label for entry in members).most_common(1)
        classes[label].append((rng.fold(seed, *name), members))
    chosen: set[str] = set()
    for drawn in classes.values():
        moved = [members for _, members in sorted(drawn, key=lambda pair: pair[0])]
        sizes = np.cumsum([0, *map(len, moved)])
        count = int(np.argmin(np.abs(sizes - round(fraction * int(sizes[-1])))))
        chosen.update(entry.path for members in moved[:count] for entry in members)
    if not chosen:
        raise ValueError(
            f"{where}: val_fraction {fraction} sets nothing aside, since train has only {len(groups)} groups in "
            f"{len(classes)} classes; raise it in params.yaml, or group less"
        )
    return [entry._replace(split="val") if entry.path in chosen else entry for entry in found]
