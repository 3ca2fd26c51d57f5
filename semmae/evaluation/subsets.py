"""Seeded subsets of the labeled samples: a hold-out to choose settings, and low-shot training sets.

Samples are drawn class by class, in an order that is a function of (seed, class). A larger subset therefore contains
every smaller one of the same seed.
"""

import numpy as np
from jaxtyping import Integer
from pydantic import PositiveInt, model_validator
from pydantic.dataclasses import dataclass

from semmae.core.config import STRICT, PositiveBelow1
from semmae.core.rng import numpy_generator


@dataclass(frozen=True, config=STRICT)
class Shots:
    """The size of a low-shot training set: a share of every class, or a number of samples of every class."""

    share: PositiveBelow1 | None = None
    per_class: PositiveInt | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "Shots":
        if (self.share is None) == (self.per_class is None):
            raise ValueError(
                "expected either share (a share of every class) or per_class (samples per class), e.g. {per_class: 5}"
            )
        return self

    @property
    def name(self) -> str:
        """The key in metrics files: `10_percent`, `0_5_percent` or `5_per_class`."""
        if self.per_class is not None:
            return f"{self.per_class}_per_class"
        return f"{100 * self.share:g}_percent".replace(".", "_")  # type: ignore[operator]  # exactly one is not None


def low_shot(labels: Integer[np.ndarray, " n"], shots: Shots, *, seed: int) -> Integer[np.ndarray, " k"]:
    """Return the sorted indices of a low-shot training set.

    Every class has at least one sample. If a class has fewer samples than required, the set contains all of them.
    """
    chosen = []
    for label in np.unique(labels):
        members = _shuffled(labels, label, seed=seed, purpose="low shot")
        size = shots.per_class or max(1, round(shots.share * len(members)))  # type: ignore[operator]
        chosen.append(members[:size])
    return np.sort(np.concatenate(chosen))


def stratified_split(labels: Integer[np.ndarray, " n"], *, share: float, seed: int) -> Integer[np.ndarray, " h"]:
    """Return the sorted indices of a hold-out: `share` of every class.

    A class with at least two samples has at least one sample inside and one outside of the hold-out.

    Raises:
        ValueError: No class has two samples.
    """
    held_out = []
    for label in np.unique(labels):
        members = _shuffled(labels, label, seed=seed, purpose="holdout")
        held_out.append(members[: min(len(members) - 1, max(1, round(share * len(members))))])
    if not sum(map(len, held_out)):
        raise ValueError(
            "every class of train has a single sample; expected at least two in some class, to hold one out"
        )
    return np.sort(np.concatenate(held_out))


def _shuffled(labels: np.ndarray, label: int, *, seed: int, purpose: str) -> np.ndarray:
    """Return the indices of a class in an order that is a function of (seed, purpose, class)."""
    return numpy_generator(seed, purpose, int(label)).permutation(np.flatnonzero(labels == label))
