"""Seeded subsets of labeled samples: a part of train held out to choose settings on, and the few of a low-shot score.

Each class is drawn from by itself, in an order that is a function of (seed, class), so a larger subset contains the
smaller ones.
"""

import numpy as np
from jaxtyping import Integer
from pydantic import PositiveInt, model_validator
from pydantic.dataclasses import dataclass

from semmae.core.config import STRICT, Share
from semmae.core.rng import numpy_generator


@dataclass(frozen=True, config=STRICT)
class Shots:
    """How much of train a low-shot score may learn from: a share of every class, or so many samples of every class."""

    share: Share | None = None
    per_class: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "Shots":
        if (self.share is None) == (self.per_class is None):
            raise ValueError("give either share (of every class) or per_class (samples), e.g. {per_class: 5}")
        return self

    @property
    def name(self) -> str:
        """As in the metrics: `10_percent`, `0_5_percent`, `5_per_class`."""
        if self.per_class is not None:
            return f"{self.per_class}_per_class"
        return f"{100 * self.share:g}_percent".replace(".", "_")  # type: ignore[operator]  # one of both is given


def low_shot(labels: Integer[np.ndarray, " n"], shots: Shots, *, seed: int) -> Integer[np.ndarray, " k"]:
    """The samples that a low-shot score learns from, at least one of every class and at most all of it."""
    chosen = []
    for label in np.unique(labels):
        members = _shuffled(labels, label, seed=seed, purpose="low shot")
        size = shots.per_class or max(1, round(shots.share * len(members)))  # type: ignore[operator]
        chosen.append(members[:size])
    return np.sort(np.concatenate(chosen))


def stratified_split(labels: Integer[np.ndarray, " n"], *, share: float, seed: int) -> Integer[np.ndarray, " h"]:
    """The samples to hold out: `share` of every class, at least one of a class that has two.

    ValueError if no class has two.
    """
    held = []
    for label in np.unique(labels):
        members = _shuffled(labels, label, seed=seed, purpose="holdout")
        held.append(members[: min(len(members) - 1, max(1, round(share * len(members))))])
    if not sum(map(len, held)):
        raise ValueError("every class of train has a single sample; a probe needs two to choose its learning rate")
    return np.sort(np.concatenate(held))


def _shuffled(labels: np.ndarray, label: int, *, seed: int, purpose: str) -> np.ndarray:
    """The samples of a class, in their order of (seed, purpose, class)."""
    return numpy_generator(seed, purpose, int(label)).permutation(np.flatnonzero(labels == label))
