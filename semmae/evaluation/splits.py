"""Open the labeled or masked samples of train and val, after a check of the shards."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from semmae.data.dataset import Reader, verify_shards


def open_labeled_splits(dataset: Path) -> tuple[Reader, Reader]:
    """Open the labeled samples of train and val.

    Raises:
        ValueError: A split has no labels, a label has no class name, or val has a class that train lacks.
    """
    train, val = (_select(dataset, split, lambda reader: reader.labels >= 0, "labels") for split in ("train", "val"))
    for split, reader in (("train", train), ("val", val)):
        if (highest := int(reader.labels.max())) >= reader.num_classes:
            raise ValueError(
                f"{dataset}: {split} has the label {highest}, but shards.json names {reader.num_classes} classes. "
                f"Write the dataset again: dvc repro -f shards@{dataset.name}"
            )
    if missing := sorted(set(val.labels) - set(train.labels)):
        names = ", ".join(val.class_names[label] for label in missing[:5])
        raise ValueError(
            f"{dataset}: val has classes that train lacks ({names}), and no classifier can learn them. Add images of "
            f"them to train, or remove them from val, in the sources of shards.datasets.{dataset.name}"
        )
    return train, val


def open_masked_splits(dataset: Path) -> tuple[Reader, Reader]:
    """Open the samples of train and val that have masks of objects or of parts.

    Raises:
        ValueError: A split has no masks, or the masks show neither foreground nor parts.
    """
    train, val = (_select(dataset, split, lambda reader: reader.has_mask, "masks") for split in ("train", "val"))
    if train.mask_kind not in ("foreground", "parts"):
        raise ValueError(
            f"{dataset}: the kind of its masks is {train.mask_kind}; part_scores needs foreground or parts"
        )
    return train, val


def _select(dataset: Path, split: str, is_usable: Callable[[Reader], np.ndarray], needed: str) -> Reader:
    reader = Reader(dataset, split)
    verify_shards(dataset)
    indices = np.flatnonzero(is_usable(reader))
    if not len(indices):
        raise ValueError(f"{dataset}: no sample of {split} has {needed}. Choose another dataset in params.yaml")
    return reader.select(indices)
