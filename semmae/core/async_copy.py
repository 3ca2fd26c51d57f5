"""Copies between host and device that do not block the host.

A copy from unpinned memory, or the read of a scalar from a GPU, blocks the host until all queued kernels have finished.
The GPU is then idle until the host queues more kernels. A training loop therefore uploads its batches with `to_device`
and downloads its values with `PendingCopy`. It reads the values after it has launched the next step.
"""

import torch
from torch import Tensor


def to_device(device: torch.device, tensor: Tensor) -> Tensor:
    """Copy a tensor to the device without blocking the host. A copy from host to GPU goes through pinned memory."""
    pinned = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return pinned.to(device, non_blocking=True)


class PendingCopy:
    """An asynchronous copy of a tensor to the host. A CPU tensor is not copied."""

    def __init__(self, tensor: Tensor) -> None:
        self._host_tensor, self._done = tensor.detach(), None
        if tensor.device.type == "cuda":
            self._host_tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host_tensor.copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()

    def read(self) -> Tensor:
        """Wait for the kernels queued before the copy and for the copy itself, then return the host tensor."""
        if self._done is not None:
            self._done.synchronize()
        return self._host_tensor
