"""Ranks, devices and collective operations. The same code runs in one process or in many.

torchrun sets the rank and the number of ranks in environment variables. Without these variables the process is rank 0
of 1, and all collective functions of this module return their input.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, distributed, nn

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class World:
    """The rank of this process, the number of ranks, and the device of this rank."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and writes files."""
        return self.rank == 0

    def slice(self, rows: Tensor) -> Tensor:
        """Return this rank's rows of a tensor that has a row for each sample of the global batch."""
        share = len(rows) // self.size
        return rows[self.rank * share : (self.rank + 1) * share]


@contextmanager
def world(device: Device) -> Iterator[World]:
    """Join the process group of torchrun, if there is one, and leave it at the end of the block."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size > 1:
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(rank, size, chosen)
    finally:
        if size > 1:
            distributed.destroy_process_group()


def choose_device(device: Device) -> torch.device:
    """Return the device of this rank. `auto` is its GPU if there is one, else the CPU.

    Raises:
        ValueError: `device` is cuda, but torch finds no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch finds no GPU; set device to cpu or auto in params.yaml")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context of mixed precision. bfloat16 needs no gradient scaler."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def parallel(model: nn.Module, world: World) -> nn.Module:
    """Wrap `model` so that its gradients are averaged over the ranks."""
    return nn.parallel.DistributedDataParallel(model) if world.size > 1 else model


def mean(value: Tensor, world: World) -> Tensor:
    """Return the mean of a tensor over the ranks, on this rank's device.

    The gradient flows to the local value only, with weight 1, because `parallel` averages the gradients of the ranks.
    """
    if world.size == 1:
        return value
    value = value.to(world.device)  # NCCL needs device tensors
    total = value.detach().clone()
    distributed.all_reduce(total)
    total /= world.size
    return total + (value - value.detach()) if value.requires_grad else total


def gather(rows: Tensor, world: World) -> Tensor:
    """Concatenate the rows of all ranks, in the order of ranks, on this rank's device. The result has no gradient."""
    if world.size == 1:
        return rows
    rows = rows.to(world.device)
    parts = [torch.empty_like(rows) for _ in range(world.size)]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def maximum(values: Tensor, world: World) -> Tensor:
    """Return the elementwise maximum over the ranks, on the device. Does not block the host."""
    if world.size > 1:
        values = values.clone()
        distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return values


def any_rank(flag: bool, world: World) -> bool:
    """Return on every rank whether `flag` is set on any rank. Blocks the host until the device has finished."""
    return flag if world.size == 1 else bool(maximum(torch.full((), int(flag), device=world.device), world))


def barrier(world: World) -> None:
    """Wait until every rank has called this function."""
    if world.size > 1:
        distributed.barrier()
