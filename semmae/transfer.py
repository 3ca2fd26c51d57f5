"""Between host and device, with nobody waiting.

Whoever reads a number off a GPU waits for all that it was told to do, and the GPU then waits for new orders; a copy
from memory that is not pinned does the same. So what a step takes goes by `onto`, and what it says of itself sets out
as `Numbers`, to be read once the next step has been told.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


def onto(device: torch.device, tensor: Tensor) -> Tensor:
    """A tensor on the device; from the host it goes by pinned memory."""
    pinned = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return pinned.to(device, non_blocking=True)


@dataclass(frozen=True)
class Numbers:
    """Named numbers on their way to the host."""

    names: list[str]
    values: Tensor  # of the host; true once `arrived`
    arrived: torch.cuda.Event | None  # None: they were here from the start

    @classmethod
    def of(cls, numbers: dict[str, Tensor], device: torch.device) -> Self:
        """Scalars set out from the device where they were computed."""
        there = torch.stack([value.detach().to(device, torch.float64) for value in numbers.values()])
        if device.type != "cuda":
            return cls(list(numbers), there, None)
        here = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
        here.copy_(there, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return cls(list(numbers), here, arrived)

    def read(self, begin: str = "") -> dict[str, float]:
        """Those whose names begin so, by the rest of their names; waits for what was told to the device before they set
        out, and for nothing later.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        found = zip(self.names, self.values.tolist(), strict=True)
        return {name.removeprefix(begin): value for name, value in found if name.startswith(begin)}
