"""Between host and device, with nobody waiting.

Whoever reads a number off a GPU waits for all that it was told to do, and the GPU then waits for new orders; a copy
from memory that is not pinned does the same. So what a step takes goes by `to_device`, and what comes of it sets out
(`PendingCopy`, `PendingScalars`), to be read once the next step has been told.
"""

import torch
from torch import Tensor


def to_device(device: torch.device, tensor: Tensor) -> Tensor:
    """A tensor on the device; from the host it goes by pinned memory."""
    pinned = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return pinned.to(device, non_blocking=True)


class PendingCopy:
    """A tensor on its way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        self.here, self.arrived = tensor.detach(), None
        if tensor.device.type == "cuda":
            self.here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self.here.copy_(tensor, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def read(self) -> Tensor:
        """Waits for what was told to the device before it set out, and for nothing later."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.here


class PendingScalars:
    """Named numbers on their way to the host."""

    def __init__(self, numbers: dict[str, Tensor], device: torch.device) -> None:
        self.names = list(numbers)
        self.values = PendingCopy(torch.stack([value.detach().to(device, torch.float64) for value in numbers.values()]))

    def read(self, begin: str) -> dict[str, float]:
        """Those whose names begin so, by the rest of their names."""
        found = zip(self.names, self.values.read().tolist(), strict=True)
        return {name.removeprefix(begin): value for name, value in found if name.startswith(begin)}
