"""The length of a self-supervised training: a number of epochs, or of optimizer steps."""

from typing import Self

from pydantic import PositiveInt, model_validator
from pydantic.dataclasses import dataclass

from semmae.core.config import STRICT

# docs/results/creatures.md: in the linear probe, 296 steps gain 0.06 over an untrained encoder, and 992 steps 0.19.
FEW_STEPS = 500


@dataclass(frozen=True, config=STRICT)
class TrainingLength:
    """Length of a training; exactly one of both fields is set.

    With `steps`, an epoch is still one pass over the images, and the last epoch may be incomplete.
    """

    epochs: PositiveInt | None
    steps: PositiveInt | None

    @model_validator(mode="after")
    def _check_one_is_set(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            given = "both are null" if self.epochs is None else f"epochs is {self.epochs} and steps is {self.steps}"
            raise ValueError(f"{given}; expected one of epochs and steps. Set the other one to null")
        return self

    def num_epochs(self, steps_per_epoch: int) -> int:
        """Return the number of epochs, including an incomplete last one."""
        return self.epochs or -(-(self.steps or 0) // steps_per_epoch)


def describe_short(num_steps: int) -> str:
    """Return a sentence that warns of a training with few steps; "" if there are enough."""
    if num_steps >= FEW_STEPS:
        return ""
    return f"{num_steps:,} steps in all; below {FEW_STEPS:,} expect little"
